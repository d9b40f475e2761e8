"""How options are spelled: a text in a query and in a form stands for a number or a truth, and in JSON for itself."""

from typing import Any

import httpx
import numpy as np
import pytest

from service.schemas import EncodeOptions, InterpolateOptions, Options, SampleOptions, TraverseOptions
from tests.service.linear import Linear
from tests.service.wire import form, pixels, read_tensors


def read(options: type[Options], **texts: str) -> dict[str, Any]:
    """What these texts stand for, by name."""
    return options.model_validate(texts).model_dump(include=set(texts))


@pytest.mark.parametrize(
    ("options", "name", "text", "value"),
    [
        (SampleOptions, "n", "4", 4),
        (SampleOptions, "n", "004", 4),
        (SampleOptions, "seed", "9223372036854775807", 2**63 - 1),
        (SampleOptions, "temperature", "1", 1.0),
        (SampleOptions, "temperature", "0.5", 0.5),
        (SampleOptions, "temperature", ".5", 0.5),
        (SampleOptions, "temperature", "2.", 2.0),
        (SampleOptions, "temperature", "25e-1", 2.5),
        (InterpolateOptions, "loop", "true", True),
        (InterpolateOptions, "loop", "False", False),
        (InterpolateOptions, "loop", "1", True),
        (InterpolateOptions, "loop", "0", False),
        (InterpolateOptions, "seeds", "3,14", (3, 14)),
        (TraverseOptions, "dims", "0", (0,)),
        (SampleOptions, "model", "1_0", "1_0"),
        (SampleOptions, "format", "true", "true"),
        (EncodeOptions, "dtype", "float16", "float16"),
    ],
)
def test_a_text_stands_for_what_it_spells(options: type[Options], name: str, text: str, value: object) -> None:
    assert read(options, **{name: text}) == {name: value}


@pytest.mark.parametrize(
    ("query", "where", "expected"),
    [
        *[
            (f"/sample?n={n}", "query.n", "a whole number")
            for n in ("1_000", "1.0", "1e3", "+4", " 4", "4 ", "0x4", "", "-", "٤")
        ],
        *[
            (f"/sample?temperature={number}", "query.temperature", "a finite number")
            for number in ("1_0", "+1", " 1", "inf", "nan", "1e", ".", "1,5", "")
        ],
        *[
            (f"/interpolate?seeds=1,2&loop={truth}", "query.loop", "true or false")
            for truth in ("t", "y", "yes", "on", "off", "2", "")
        ],
        ("/interpolate?seeds=1_0,2", "query.seeds[0]", "a whole number"),
        ("/interpolate?seeds=1, 2", "query.seeds[1]", "a whole number"),
        ("/interpolate?seeds=1,2.0,3", "query.seeds[1]", "a whole number"),
        ("/interpolate?seeds=1,2,", "query.seeds[2]", "a whole number"),
        ("/interpolate?seeds=-1,2", "query.seeds[0]", "greater than or equal to 0"),
        ("/traverse?seed=1&dims=٤", "query.dims[0]", "a whole number"),
    ],
)
def test_what_python_alone_takes_for_a_number_or_a_truth_is_422(
    client: httpx.Client, query: str, where: str, expected: str
) -> None:
    path, _, sent = query.partition("?")
    answer = client.get(path, params=dict(each.split("=") for each in sent.split("&")))
    assert answer.status_code == 422
    assert [(fault["where"], fault["expected"]) for fault in answer.json()["errors"]] == [(where, expected)]


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/sample", {"n": "4"}, "body.n"),
        ("/sample", {"seed": "4"}, "body.seed"),
        ("/sample", {"temperature": "1"}, "body.temperature"),
        ("/interpolate", {"seeds": [3, 14], "loop": "true"}, "body.loop"),
        ("/interpolate", {"points": [{"seed": 3}, {"seed": "14"}]}, "body.points[1].seed"),
    ],
)
def test_in_json_a_text_is_no_number_and_no_truth(
    client: httpx.Client, path: str, body: dict[str, Any], where: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["where"] == where
    assert fault["got"].startswith('"')


@pytest.mark.parametrize("seeds", ["3,1_4", ["3", "1_4"], ["3", " 14"], ["3", "14.0"]])
def test_a_list_of_texts_in_json_is_spelled_as_in_a_query(client: httpx.Client, seeds: object) -> None:
    """That it may be one at all, `test_interpolate` says."""
    answer = client.post("/interpolate", json={"seeds": seeds})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert (fault["where"], fault["expected"]) == ("body.seeds[1]", "a whole number")


def test_a_number_is_shown_as_it_was_sent(client: httpx.Client) -> None:
    assert client.get("/sample?n=000").json()["errors"][0]["got"] == "000"
    assert client.get("/traverse?span=0").json()["errors"][0]["got"] == "0"


def test_a_whole_number_of_json_may_have_a_point(client: httpx.Client) -> None:
    """As JSON Schema has it: to it, 4.0 is an integer."""
    for path, whole, pointed in (
        ("/sample", {"n": 2, "seed": 3}, {"n": 2.0, "seed": 3.0}),
        ("/interpolate", {"seeds": [3, 14]}, {"seeds": [3.0, 14]}),
        ("/interpolate", {"points": [{"seed": 3}, {"seed": 14}]}, {"points": [{"seed": 3.0}, {"seed": 14}]}),
    ):
        answers = [client.post(path, json=body) for body in (whole, pointed)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
        assert answers[0].content == answers[1].content


def test_the_fields_of_a_form_are_texts(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    fields = {"steps": "3", "loop": "true", "method": "slerp", "format": "safetensors"}
    answer = client.post("/interpolate", files=form(image), data=fields)
    assert answer.status_code == 200, answer.text
    assert len(read_tensors(answer.content)["images"]) == 2 * (3 - 1)
    refused = client.post("/interpolate", files=form(image), data=fields | {"steps": "1_0"})
    assert refused.json()["detail"] == "form.steps: got 1_0, expected a whole number"


def test_a_list_is_told_by_its_first_item_that_is_none() -> None:
    wrong = ",".join(["1"] * 60_000 + ["x"] * 5_000)
    with pytest.raises(ValueError, match="1 validation error") as refused:
        read(InterpolateOptions, seeds=wrong)
    (error,) = refused.value.errors()  # type: ignore[attr-defined]
    assert (error["loc"], error["input"]) == (("seeds", 60_000), "x")
    whole = np.arange(65_536)
    assert read(InterpolateOptions, seeds=",".join(map(str, whole))) == {"seeds": tuple(whole.tolist())}

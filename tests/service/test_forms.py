import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Invalid, NotAcceptable
from service.forms import ANIMATIONS, LATENT_FORMS, PATH_FORMS, STILL_FORMS, Form, accepted, named


def accepting(accept: str | None, forms: tuple[Form, ...] = PATH_FORMS) -> Form:
    return accepted(forms, accept)


@pytest.mark.parametrize("forms", [LATENT_FORMS, STILL_FORMS, PATH_FORMS])
@pytest.mark.parametrize("accept", [None, "", "*/*", "text/html, */*;q=0.1", "*/*;q=0.001"])
def test_the_first_form_is_the_default(forms: tuple[Form, ...], accept: str | None) -> None:
    assert accepting(accept, forms) is forms[0]


@pytest.mark.parametrize("form", PATH_FORMS)
def test_format_names_a_form(form: Form) -> None:
    assert named(PATH_FORMS, form.label, where="query.format") is form


@pytest.mark.parametrize("form", PATH_FORMS)
def test_a_media_type_alone_is_that_form(form: Form) -> None:
    assert accepting(form.media_type) is form
    assert accepting(f" {form.media_type.upper()} ; Q=0.3 , text/html") is form


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/png;q=0.4, image/webp;q=0.5, image/jpeg;q=0.3", Form.WEBP),
        ("image/png;q=0.4,application/json", Form.JSON),
        ("application/json;q=0.9, application/vnd.safetensors;q=0.91", Form.SAFETENSORS),
        ("image/*", Form.PNG),
        ("image/*;q=0.2, application/json;q=0.3", Form.JSON),
        ("application/*", Form.JSON),
        ("image/jpeg, */*;q=0.9", Form.JPEG),
        ("image/png;q=0.1, */*", Form.WEBP),
        ("image/png;q=0, image/*", Form.WEBP),
        ("image/*;q=0, */*;q=0.1", Form.JSON),
        ("image/png;level=1;q=0.2, image/jpeg;q=0.3", Form.JPEG),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", Form.PNG),
    ],
)
def test_the_highest_weight_wins_and_the_most_specific_range_gives_it(accept: str, expected: Form) -> None:
    assert accepting(accept) is expected


@pytest.mark.parametrize("accept", ["image/webp, image/png", "image/jpeg,image/webp,image/png", "image/jpeg, image/*"])
def test_the_order_of_the_table_decides_ties(accept: str) -> None:
    assert accepting(accept) is Form.PNG


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/gif", Form.GIF),
        ("image/apng, image/gif", Form.GIF),
        ("image/apng, image/gif;q=0.9", Form.APNG),
        ("image/gif, image/png;q=0.1", Form.PNG),
        ("image/gif, */*;q=0.01", Form.PNG),
        ("image/gif, image/png;q=0, text/html", Form.GIF),
    ],
)
def test_an_animation_is_taken_only_when_no_still_form_is_accepted(accept: str, expected: Form) -> None:
    assert accepting(accept) is expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "*/*;q=0", "image/gif", "image", "png", ",", "image/png;q=x", ";q=1"]
)
def test_what_admits_no_form_is_refused_with_those_there_are(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="expected one of image/png, image/webp, image/jpeg, application/json"):
        accepting(accept, STILL_FORMS)


@pytest.mark.parametrize("accept", ["image/png," * 64, "image/png" + ";q=1" * 64])
def test_thousands_of_types_are_refused_and_not_read(accept: str) -> None:
    with pytest.raises(NotAcceptable, match=r"^Accept: got 65 types and parameters, expected at most 64$"):
        accepting(accept, STILL_FORMS)
    assert accepting(accept[: len(accept) * 63 // 64], STILL_FORMS) is Form.PNG


@pytest.mark.parametrize("weight", ["nan", "inf", "-1", "2", "one", ""])
def test_a_range_with_a_weight_that_is_none_counts_as_refused(weight: str) -> None:
    assert accepting(f"image/png;q={weight}, application/json;q=0.1") is Form.JSON


@pytest.mark.parametrize("label", ["gif", "PNG", "image/png", "", "bmp"])
def test_a_format_that_the_verb_has_not_is_invalid(label: str) -> None:
    with pytest.raises(Invalid, match=r"^body\.format: got .*, expected one of png, webp, jpeg, json, safetensors$"):
        named(STILL_FORMS, label, where="body.format")


@given(accept=st.text(max_size=60) | st.text(alphabet="image/pngjso*;q=0.1, ", max_size=60))
def test_any_accept_gives_a_form_or_a_refusal(accept: str) -> None:
    try:
        form = accepting(accept)
    except NotAcceptable:
        return
    assert form in PATH_FORMS


@given(weights=st.permutations([0.1 * i for i in range(1, len(PATH_FORMS) + 1)]))
def test_among_named_stills_the_heaviest_is_taken(weights: list[float]) -> None:
    accept = ", ".join(f"{form.media_type};q={weight:.1f}" for form, weight in zip(PATH_FORMS, weights, strict=True))
    heaviest = max(zip(PATH_FORMS, weights, strict=True), key=lambda pair: (pair[0] not in ANIMATIONS, pair[1]))[0]
    assert accepting(accept) is heaviest

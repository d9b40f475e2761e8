"""The OpenAPI document says what the code does: every route, option, body, answer and error."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.bodies import readable_types
from service.errors import PROBLEMS
from service.settings import Settings
from tests.service.keyring import lines, tokens, write
from tests.service.linear import Bundles, Linear
from tests.service.verbs import GETS, VERBS
from tests.service.wire import base64_png, pixels, png
from tests.serving import serving


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(document: dict[str, Any], reference: str) -> Any:
    head, *parts = reference.split("/")
    assert head == "#"
    node: Any = document
    for part in parts:
        node = node[part]
    return node


def test_every_route_stands_in_it(document: dict[str, Any]) -> None:
    found = {(path, method) for path, method, _ in operations(document)}
    assert found == {
        ("/encode", "post"), ("/score", "post"), ("/sample", "get"), ("/sample", "post"), ("/decode", "post"),
        ("/reconstruct", "post"), ("/interpolate", "get"), ("/interpolate", "post"), ("/traverse", "get"),
        ("/traverse", "post"), ("/models", "get"), ("/models/{name}", "get"), ("/models/{name}/card", "get"),
        ("/models/{name}/reload", "post"),
        ("/health/live", "get"), ("/health/ready", "get"), ("/metrics", "get"),
    }  # fmt: skip


def test_every_route_of_it_exists(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, method, _ in operations(document):
        answer = client.request(method.upper(), path.replace("{name}", "colour"))
        assert answer.status_code not in {405, 500}, (method, path)
        assert "there is no such path" not in answer.text, (method, path)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        assert resolved(document, reference)


def test_every_schema_is_used(document: dict[str, Any]) -> None:
    used = {reference.rsplit("/", 1)[-1] for reference in references(document)}
    assert set(document["components"]["schemas"]) <= used | {"HTTPValidationError", "ValidationError"}


def test_operations_have_names_of_their_own_in_one_style(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert sorted(names) == [
        "decode", "encode", "get_interpolate", "get_sample", "get_traverse", "interpolate", "list_models", "live",
        "metrics", "ready", "reconstruct", "reload_model", "sample", "score", "show_card", "show_model", "traverse",
    ]  # fmt: skip


def verb_operations(document: dict[str, Any], path: str) -> list[dict[str, Any]]:
    methods = ("get", "post") if path in GETS else ("post",)
    return [document["paths"][path][method] for method in methods]


@pytest.mark.parametrize("path", VERBS)
def test_every_option_is_a_described_parameter(document: dict[str, Any], path: str) -> None:
    for operation in verb_operations(document, path):
        parameters = {item["name"]: item for item in operation["parameters"] if item["in"] == "query"}
        assert set(parameters) == set(VERBS[path].options.model_fields)
        headers = [item["name"] for item in operation["parameters"] if item["in"] == "header"]
        cached = [] if "requestBody" in operation else ["If-None-Match"]
        assert headers == ["X-Timeout-Ms", *cached, "X-Request-ID"]
        for parameter in parameters.values():
            assert parameter["in"] == "query"
            assert not parameter["required"]
            assert parameter["description"]
            assert "type" in parameter["schema"] or "enum" in parameter["schema"]


def test_a_parameter_says_its_range_and_default(document: dict[str, Any]) -> None:
    parameters = {item["name"]: item["schema"] for item in document["paths"]["/sample"]["get"]["parameters"]}
    assert parameters["n"] == {"type": "integer", "minimum": 1, "default": 1}
    assert parameters["seed"] == {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**63 - 1}
    assert parameters["prior"] == {"enum": ["standard", "fitted"], "type": "string"}
    assert parameters["height"] == {"type": "integer", "minimum": 1}


@pytest.mark.parametrize(
    ("path", "name", "pattern", "example"),
    [("/interpolate", "seeds", "^[0-9]+(,[0-9]+)+$", "3,14"), ("/traverse", "dims", "^[0-9]+(,[0-9]+)*$", "0,3,5")],
)
def test_a_list_in_an_address_or_a_form_is_a_text_with_commas(
    kinds: httpx.Client, document: dict[str, Any], path: str, name: str, pattern: str, example: str
) -> None:
    (parameter,) = [item for item in document["paths"][path]["get"]["parameters"] if item["name"] == name]
    assert (parameter["schema"], parameter["example"]) == ({"type": "string", "pattern": pattern}, example)
    assert re.fullmatch(pattern, example)
    assert kinds.get(path, params={"seed": 1, name: example} if name == "dims" else {name: example}).status_code == 200
    (posted,) = [item for item in document["paths"][path]["post"]["parameters"] if item["name"] == name]
    assert posted["schema"] == parameter["schema"]
    form = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"][name] == parameter["schema"] | {"description": parameter["description"]}
    assert "encoding" not in form
    assert body_schema(document, path)["properties"][name]["anyOf"][0]["type"] == "array"


# Defaults and examples


def body_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema: dict[str, Any] = resolved(document, content["application/json"]["schema"]["$ref"])
    return schema


def stated(options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a generated client sends of options that nobody has set."""
    return {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.mark.parametrize("path", VERBS)
def test_a_request_of_every_default_that_it_states_is_taken(
    kinds: httpx.Client, document: dict[str, Any], full: Linear, path: str
) -> None:
    """In the query and the body at once, as clients do that are generated from it."""
    post = document["paths"][path]["post"]
    query = stated({item["name"]: item["schema"] for item in post["parameters"]})
    needed: dict[str, Any] = (
        {"z": [0] * 10} if path == "/decode" else {"images": [base64_png(row) for row in pixels(2, full.shape)]}
    )
    body = stated(body_schema(document, path)["properties"])
    points: dict[str, dict[str, Any]] = {"/sample": {}, "/traverse": {"seed": 1}, "/interpolate": {"seeds": [1, 2]}}
    answer = kinds.post(path, params=query, json=body | points.get(path, needed))
    assert answer.status_code == 200, answer.text
    form = post["requestBody"]["content"].get("multipart/form-data")
    if form and path != "/traverse":
        fields = stated(form["schema"]["properties"])
        parts = [("images", (None, png(row))) for row in pixels(2, full.shape)]
        answer = kinds.post(path, params=query, data=fields, files=parts)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", VERBS)
def test_a_post_says_its_defaults_in_words(document: dict[str, Any], path: str) -> None:
    post = document["paths"][path]["post"]
    content = post["requestBody"]["content"]
    form = content.get("multipart/form-data", {"schema": {"properties": {}}})
    for name, field in VERBS[path].options.model_fields.items():
        (parameter,) = [item for item in post["parameters"] if item["name"] == name]
        places = [
            parameter["schema"] | {"description": parameter["description"]},
            body_schema(document, path)["properties"][name],
            *([form["schema"]["properties"][name]] if form["schema"]["properties"] else []),
        ]
        said = {None: ""}.get(field.default, f" Default: `{str(field.default).replace('False', 'false')}`.")
        for option in places:
            assert option["description"] == f"{field.description}{said}"
            assert not {"default", "example", "examples"} & option.keys()
        assert "example" not in parameter


@pytest.mark.parametrize("path", GETS)
def test_a_get_states_its_defaults(document: dict[str, Any], path: str) -> None:
    found = stated({item["name"]: item["schema"] for item in document["paths"][path]["get"]["parameters"]})
    defaults = {name: field.default for name, field in VERBS[path].options.model_fields.items()}
    assert found == {name: default for name, default in defaults.items() if default is not None}


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    with serving([]) as running, httpx.Client(base_url=running.url, timeout=30) as http:
        yield http


@pytest.mark.parametrize("path", VERBS)
def test_the_example_of_a_body_is_taken_by_the_shipped_model(
    shipped: httpx.Client, document: dict[str, Any], path: str
) -> None:
    (example,) = body_schema(document, path)["examples"]
    answer = shipped.post(path, json=example)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", VERBS)
def test_the_forms_of_a_verb_stand_in_its_bodies_too(document: dict[str, Any], path: str) -> None:
    forms = [form.label for form in VERBS[path].forms]
    in_json = body_schema(document, path)["properties"]["format"]
    assert in_json["anyOf"] == [{"type": "string", "enum": forms}, {"type": "null"}]
    content = document["paths"][path]["post"]["requestBody"]["content"]
    if "multipart/form-data" in content:
        assert content["multipart/form-data"]["schema"]["properties"]["format"]["enum"] == forms


def test_latents_are_lists_of_numbers_however_deep(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    latent = {"$ref": "#/components/schemas/Latent"}
    assert schemas["Latent"] == {"type": "array", "items": {"anyOf": [{"type": "number"}, latent]}}
    assert schemas["DecodeBody"]["properties"]["z"]["$ref"] == latent["$ref"]
    assert schemas["EncodeAnswer"]["properties"]["mu"]["items"]["$ref"] == latent["$ref"]
    assert schemas["Point"]["properties"]["z"]["anyOf"][0]["$ref"] == latent["$ref"]


def test_a_model_is_described_by_its_manifest(document: dict[str, Any]) -> None:
    model = document["components"]["schemas"]["ModelAnswer"]["properties"]
    assert model["image"] == {"$ref": "#/components/schemas/ImageSpec"}
    assert model["manifest"] == {"$ref": "#/components/schemas/Manifest"}


@pytest.mark.parametrize("model", ["EncodeAnswer", "ScoreAnswer", "PicturesAnswer"])
def test_a_seed_that_is_answered_has_64_bits(document: dict[str, Any], model: str) -> None:
    seed = document["components"]["schemas"][model]["properties"]["seed"]
    assert {"type": "integer", "format": "int64"} in seed["anyOf"]


def test_a_body_is_required_of_verbs_that_have_nothing_to_do_without(document: dict[str, Any]) -> None:
    required = {path for path in VERBS if document["paths"][path]["post"]["requestBody"]["required"]}
    assert required == {"/encode", "/score", "/decode", "/reconstruct"}
    forms = {
        path: document["paths"][path]["post"]["requestBody"]["content"].get("multipart/form-data") for path in VERBS
    }
    assert {path for path, form in forms.items() if form and "required" in form["schema"]} == required - {"/decode"}


PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
IN_ORDER = re.findall(
    r"`([a-z]+/[a-z.-]+)`(?= `|(?: \|))", PAGE[PAGE.index("| body | verbs") : PAGE.index("Options stand in")]
)


@pytest.mark.parametrize("path", VERBS)
def test_every_body_that_is_read_stands_in_it(document: dict[str, Any], path: str) -> None:
    contents = document["paths"][path]["post"]["requestBody"]["content"]
    assert tuple(contents) == readable_types(VERBS[path].takes)
    assert list(contents) == [each for each in IN_ORDER if each in contents]
    schema = resolved(document, contents["application/json"]["schema"]["$ref"])
    assert set(schema["properties"]) == set(VERBS[path].options.model_fields) | VERBS[path].takes
    if path in GETS:
        assert "requestBody" not in document["paths"][path]["get"]


@pytest.mark.parametrize("path", VERBS)
def test_every_form_of_answer_stands_in_it(document: dict[str, Any], path: str) -> None:
    for operation in verb_operations(document, path):
        answer = operation["responses"]["200"]
        assert list(answer["content"]) == [form.media_type for form in VERBS[path].forms]
        assert {"X-Model", "X-Request-ID", "Server-Timing"} <= set(answer["headers"])


TITLES = {kind.title: kind for kind in PROBLEMS}


def kinds_of(operation: dict[str, Any]) -> set[str]:
    """The problems that an operation may come to."""
    said = [answer["description"] for status, answer in operation["responses"].items() if status >= "400"]
    return {TITLES[title].kind for each in said for title in each.split("; or: ")}


OF_ALL = {"head-too-large", "internal", "too-many-connections"}
OF_VERBS = OF_ALL | {
    "not-found", "not-acceptable", "too-large", "invalid", "queue-full", "not-ready", "out-of-memory",
    "deadline-passed",
}  # fmt: skip
OF_BODIES = {"bad-body", "slow-body", "unsupported-type"}


@pytest.mark.parametrize("path", VERBS)
def test_a_verb_lists_the_problems_that_it_can_come_to(document: dict[str, Any], path: str) -> None:
    lacking = {"model-cannot"} if path not in {"/decode", "/reconstruct"} else set()
    for operation in verb_operations(document, path):
        assert kinds_of(operation) == OF_VERBS | lacking | (OF_BODIES if "requestBody" in operation else set())
        for status, item in operation["responses"].items():
            if status >= "400":
                schema = resolved(document, item["content"]["application/problem+json"]["schema"]["$ref"])
                assert set(schema["properties"]) == {"type", "title", "status", "detail", "instance", "errors"}


def test_other_routes_list_the_problems_that_they_can_come_to(document: dict[str, Any]) -> None:
    own = {
        "list_models": set(), "show_model": {"not-found"}, "show_card": {"not-found"}, "metrics": set(),
        "reload_model": {"not-found", "reload-refused", "invalid", "not-ready", "deadline-passed", "keys-off"},
        "live": {"not-ready"}, "ready": {"not-ready"},
    }  # fmt: skip
    others = [operation for path, _, operation in operations(document) if path not in VERBS]
    assert {operation["operationId"]: kinds_of(operation) for operation in others} == {
        name: OF_ALL | kinds for name, kinds in own.items()
    }


def test_with_keys_on_operations_list_those_of_keys_too(bundles: Bundles, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", lines(tokens("reader")))
    document = create_app(Settings(bundles=(bundles.colour,), api_keys_file=keys), cores=1).openapi()
    for path, _, operation in operations(document):
        of_keys = kinds_of(operation) & {"no-key", "key-lacks-scope", "keys-off", "rate-used-up"}
        assert of_keys == (set() if path.startswith("/health/") else {"no-key", "key-lacks-scope", "rate-used-up"}), (
            path
        )
    assert {"queue-full", "rate-used-up"} <= kinds_of(document["paths"]["/sample"]["get"])
    assert "queue-full" not in kinds_of(document["paths"]["/models"]["get"])


@pytest.mark.parametrize("path", GETS)
def test_a_get_may_be_answered_by_304(document: dict[str, Any], path: str) -> None:
    assert "304" in document["paths"][path]["get"]["responses"]
    assert "304" not in document["paths"][path]["post"]["responses"]


JSON_TYPES = {
    str: {"string"},
    int: {"integer", "number"},
    list: {"array"},
    type(None): {"null"},
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/encode", {"images": []}),
        ("/encode", {"images": None}),
        ("/encode", {"images": None, "draws": 2}),
        ("/score", {"images": None}),
        ("/score", {"images": None, "k": 2}),
        ("/sample", {"n": 2}),
        ("/decode", {"z": [0] * 10}),
        ("/reconstruct", {"images": None}),
        ("/reconstruct", {"images": None, "compare": True}),
        ("/interpolate", {"seeds": [1, 2]}),
        ("/traverse", {"seed": 1}),
        ("/traverse", {}),
        ("/encode", {"images": None, "model": "autoencoder"}),
        ("/score", {"images": None, "model": "autoencoder"}),
    ],
)
def test_json_answers_have_the_members_that_it_names(
    kinds: httpx.Client, document: dict[str, Any], full: Linear, path: str, body: dict[str, Any]
) -> None:
    """Where images are None, a picture is sent."""
    picture = [base64_png(row) for row in pixels(1, full.shape)]
    answer = kinds.post(f"{path}?format=json", json={name: picture if v is None else v for name, v in body.items()})
    status, media_type = str(answer.status_code), answer.headers["content-type"]
    content = document["paths"][path]["post"]["responses"][status]["content"]
    schema = resolved(document, content[media_type]["schema"]["$ref"])
    members = answer.json()
    assert set(schema["required"]) <= set(members) <= set(schema["properties"])
    for name, value in members.items():
        choices = schema["properties"][name].get("anyOf", [schema["properties"][name]])
        assert JSON_TYPES[type(value)] & {choice.get("type") for choice in choices}, name


def test_models_answer_what_it_names(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, url in (("/models", "/models"), ("/models/{name}", "/models/grey")):
        content = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = resolved(document, content["application/json"]["schema"]["$ref"])
        assert set(client.get(url).json()) == set(schema["properties"])


# The page


def test_the_page_loads_its_files_from_this_server_alone(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text)
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert {"swagger-ui.css", "swagger-ui-bundle.js"} <= {url.rsplit("/", 1)[-1] for url in loaded}
    for url in loaded:
        answer = client.get(url)
        assert answer.status_code == 200, url
        assert answer.content


def test_there_is_no_second_page_that_needs_a_network(client: httpx.Client) -> None:
    assert client.get("/redoc").status_code == 404


def test_every_option_stands_among_the_fields_of_a_form(document: dict[str, Any]) -> None:
    for path in ("/encode", "/score", "/reconstruct", "/interpolate", "/traverse"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        fields = set(content["multipart/form-data"]["schema"]["properties"])
        assert fields == {"images", *VERBS[path].options.model_fields}


# Of HTTP itself, and what tells a browser what it may do.
UNNAMED = {"date", "content-type", "content-length", "connection", "x-content-type-options"}
SENT: list[tuple[str, str, int, dict[str, str]]] = [
    ("/sample", "", 200, {}),
    ("/sample", "?seed=1", 304, {"if-none-match": "*"}),
    ("/sample", "?seed=1&format=json", 304, {"if-none-match": "*"}),
    ("/sample", "?n=0", 422, {}),
    ("/interpolate", "?seeds=1,2", 200, {}),
    ("/interpolate", "", 422, {}),
    ("/traverse", "?seed=1", 200, {}),
    ("/traverse", "?seed=1", 304, {"if-none-match": "*"}),
    ("/models", "", 200, {}),
    ("/models/{name}", "", 200, {}),
    ("/models/{name}", "?", 404, {}),
    ("/health/live", "", 200, {}),
    ("/metrics", "", 200, {}),
]


@pytest.mark.parametrize(("path", "query", "status", "headers"), SENT)
def test_every_header_of_an_answer_stands_in_it(
    kinds: httpx.Client, path: str, query: str, status: int, headers: dict[str, str]
) -> None:
    document = kinds.get("/openapi.json").json()
    name = "nobody" if status == 404 else "full"
    answer = kinds.get(path.replace("{name}", name) + query, headers=headers)
    assert answer.status_code == status, answer.text
    operation = document["paths"][path]["get"]
    listed = {name.lower() for name in operation["responses"][str(status)]["headers"]}
    assert answer.headers.keys() - UNNAMED <= listed
    assert {name.lower() for name in headers} <= {item["name"].lower() for item in operation["parameters"]}


def test_every_header_of_a_card_stands_in_it(shipped: httpx.Client, document: dict[str, Any]) -> None:
    responses = document["paths"]["/models/{name}/card"]["get"]["responses"]
    for held, status in (({}, 200), ({"if-none-match": "*"}, 304)):
        answer = shipped.get("/models/fashion/card", headers=held)
        assert answer.status_code == status
        assert answer.headers.keys() - UNNAMED == {name.lower() for name in responses[str(status)]["headers"]}


def test_what_any_request_may_come_to_stands_at_every_operation(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        assert {"431", "500", "503"} <= operation["responses"].keys()
        for status, answer in operation["responses"].items():
            seen = status != "431" and answer["description"] != "Too many connections"  # by an application
            assert ("X-Request-ID" in answer["headers"]) == seen, status
        assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_the_types_of_problems_are_a_closed_list(document: dict[str, Any]) -> None:
    types = document["components"]["schemas"]["ProblemAnswer"]["properties"]["type"]["enum"]
    assert types == [f"urn:vaeserve:problem:{kind.kind}" for kind in PROBLEMS]

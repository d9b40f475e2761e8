"""The OpenAPI document says what the code does: every route, option, body, answer and error."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.bodies import readable_types
from service.errors import PROBLEMS
from service.routes.latents import ENCODE
from service.routes.pictures import DECODE, INTERPOLATE, SAMPLE

VERBS = {"/encode": ENCODE, "/sample": SAMPLE, "/decode": DECODE, "/interpolate": INTERPOLATE}
GETS = ("/sample", "/interpolate")


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
        ("/encode", "post"), ("/sample", "get"), ("/sample", "post"), ("/decode", "post"), ("/interpolate", "get"),
        ("/interpolate", "post"), ("/models", "get"), ("/models/{name}", "get"), ("/health/live", "get"),
        ("/health/ready", "get"),
    }  # fmt: skip


def test_every_route_of_it_exists(client: httpx.Client, document: dict[str, Any]) -> None:
    for path, method, _ in operations(document):
        answer = client.request(method.upper(), path.replace("{name}", "colour"))
        assert answer.status_code not in {404, 405, 500}, (method, path)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        assert resolved(document, reference)


def test_every_schema_is_used(document: dict[str, Any]) -> None:
    used = {reference.rsplit("/", 1)[-1] for reference in references(document)}
    assert set(document["components"]["schemas"]) <= used | {"HTTPValidationError", "ValidationError"}


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def verb_operations(document: dict[str, Any], path: str) -> list[dict[str, Any]]:
    methods = ("get", "post") if path in GETS else ("post",)
    return [document["paths"][path][method] for method in methods]


@pytest.mark.parametrize("path", VERBS)
def test_every_option_is_a_described_parameter(document: dict[str, Any], path: str) -> None:
    for operation in verb_operations(document, path):
        parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
        assert set(parameters) == set(VERBS[path].options.model_fields)
        for parameter in parameters.values():
            assert parameter["in"] == "query"
            assert not parameter["required"]
            assert parameter["description"]
            assert "type" in parameter["schema"] or "enum" in parameter["schema"]


def test_a_parameter_says_its_range_and_default(document: dict[str, Any]) -> None:
    parameters = {item["name"]: item["schema"] for item in document["paths"]["/sample"]["get"]["parameters"]}
    assert parameters["n"] == {"type": "integer", "minimum": 1, "default": 1}
    assert parameters["seed"] == {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    assert parameters["prior"]["enum"] == ["standard", "fitted"]


@pytest.mark.parametrize("path", VERBS)
def test_every_body_that_is_read_stands_in_it(document: dict[str, Any], path: str) -> None:
    contents = document["paths"][path]["post"]["requestBody"]["content"]
    assert set(contents) == set(readable_types(VERBS[path].takes))
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


@pytest.mark.parametrize("path", VERBS)
def test_every_error_of_the_list_stands_in_it_as_a_problem(document: dict[str, Any], path: str) -> None:
    known = {str(kind.status) for kind in PROBLEMS} - {"405"}  # a method that is not there has no operation
    for operation in verb_operations(document, path):
        errors = {status: item for status, item in operation["responses"].items() if status >= "400"}
        without_body = {"400", "415"} if "requestBody" not in operation else set()
        assert set(errors) == known - without_body
        for item in errors.values():
            schema = resolved(document, item["content"]["application/problem+json"]["schema"]["$ref"])
            assert set(schema["properties"]) == {"type", "title", "status", "detail", "instance", "errors"}


@pytest.mark.parametrize("path", GETS)
def test_a_get_may_be_answered_by_304(document: dict[str, Any], path: str) -> None:
    assert "304" in document["paths"][path]["get"]["responses"]
    assert "304" not in document["paths"][path]["post"]["responses"]


@pytest.mark.parametrize(
    ("path", "request_parts"),
    [
        ("/encode", {"json": {"images": []}}),
        ("/sample", {"json": {"n": 2}}),
        ("/decode", {"json": {"z": [[0, 0, 0, 0]]}}),
        ("/interpolate", {"json": {"seeds": [1, 2]}}),
    ],
)
def test_json_answers_have_the_members_that_it_names(
    client: httpx.Client, document: dict[str, Any], path: str, request_parts: dict[str, Any]
) -> None:
    answer = client.post(f"{path}?format=json", **request_parts)
    status, media_type = str(answer.status_code), answer.headers["content-type"]
    content = document["paths"][path]["post"]["responses"][status]["content"]
    schema = resolved(document, content[media_type]["schema"]["$ref"])
    members = answer.json()
    assert set(schema["required"]) <= set(members) <= set(schema["properties"])


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
    for path in ("/encode", "/interpolate"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        fields = set(content["multipart/form-data"]["schema"]["properties"])
        assert fields == {"images", *VERBS[path].options.model_fields}


def test_every_header_of_an_answer_stands_in_it(document: dict[str, Any], client: httpx.Client) -> None:
    ours = ("x-model", "x-request-id", "server-timing", "x-seed", "etag", "cache-control")
    for path, query in {"/sample": "", "/interpolate": "?seeds=1,2"}.items():
        listed = {name.lower() for name in document["paths"][path]["get"]["responses"]["200"]["headers"]}
        sent = {name for name in client.get(path + query).headers if name in ours}
        assert sent <= listed
        assert {"x-model", "x-request-id", "server-timing", "cache-control"} <= sent

import httpx
import pytest

from tests.serving import Server


@pytest.mark.parametrize(("path", "status"), [("/health/live", "live"), ("/health/ready", "ready")])
def test_a_probe_answers(client: httpx.Client, path: str, status: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"status": status}
    assert client.head(path).status_code == 200


def test_the_process_says_what_it_serves_and_where_it_runs(server: Server) -> None:
    said = "".join(server.said)
    assert "model colour@" in said
    assert "6x5x3, latents 4, CPUExecutionProvider (onnxruntime " in said
    assert "model grey@" in said
    assert "28x28x1, latents 2x3x2" in said


def test_the_root_leads_to_the_documentation(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.is_redirect
    assert answer.headers["location"] == "/docs"

"""Settings: where they come from, which goes before which, and what is said of those that are wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latent_encoder.service.config import NAMES, Settings
from latent_encoder.service.config_sources import Loaded, load
from latent_encoder.service.hosts import is_loopback
from latent_encoder.service.start_checks import check_start

MAIN = Path(__file__).parents[2] / "main.py"
SECRET = "hunter2-is-secret"
ROOT = Path(__file__).parents[2]
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no setting in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES.values():
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def command_line(here: Path) -> CommandLine:
    """Runs ``python main.py`` there; what is given by name goes into the environment."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(MAIN), *words],
            cwd=here,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def said(problems: list[str], word: str) -> str:
    """The one sentence with that word."""
    (sentence,) = [problem for problem in problems if word in problem]
    return sentence


def test_the_command_line_goes_before_the_environment_and_that_before_dotenv(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text("MEGAPIXELS=3\nREST_PORT=3003\nLATENT_ENCODER_TIMEOUT=3\nOTHER_PROGRAMS=1\n")
    monkeypatch.setenv("MEGAPIXELS", "2")
    monkeypatch.setenv("REST_PORT", "2002")
    loaded = load({"megapixels": "1.5"})
    settings = loaded.settings
    assert (settings.megapixels, settings.rest_port, settings.timeout, settings.queue_size) == (1.5, 2002, 3.0, 256)
    named = ("megapixels", "rest_port", "timeout", "queue_size")
    assert [loaded.origins[name] for name in named] == ["command line", "environment", ".env", "default"]
    assert not loaded.problems
    assert not loaded.warnings


def test_an_empty_variable_counts_as_unset(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("MEGAPIXELS=2\n")
    monkeypatch.setenv("MEGAPIXELS", "")
    monkeypatch.setenv("LATENT_ENCODER_API_TOKEN", "")
    loaded = load({})
    assert loaded.settings.megapixels == 2
    assert loaded.settings.api_token is None
    assert loaded.origins["megapixels"] == ".env"


def test_settings_by_name_read_no_other_source(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("REST_PORT=1\n")
    monkeypatch.setenv("MEGAPIXELS", "2")
    settings = Settings(output_dir="sub")
    assert (settings.megapixels, settings.rest_port) == (1.0, 8000)
    assert settings.output_roots == [settings.output_dir] == [here / "sub"]
    assert settings.input_roots == [here]
    assert settings.models_folder == here / "models"
    assert Settings(comfyui_path="/c").models_folder == Path("/c/models")
    assert Settings(comfyui_path="/c", model_dir="m").models_folder == here / "m"


def test_lists_are_comma_separated_and_paths_absolute(here: Path) -> None:
    flags = {"comfyui_url": "http://a:1/, https://b/x,", "input_roots": "in,/data, ~/pictures", "log_level": "DEBUG"}
    settings = load(flags).settings
    assert settings.comfyui_url == ["http://a:1", "https://b/x"]
    assert settings.input_roots == [here / "in", Path("/data"), Path.home() / "pictures"]
    assert settings.log_level == "debug"


def test_all_problems_are_reported_at_once_with_name_value_source_and_what_is_allowed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text("REST_PORT=99999\nLATENT_ENCODER_NO_AUTH=perhaps\n")
    monkeypatch.setenv("UPSCALE_METHOD", "magic")
    monkeypatch.setenv("LATENT_ENCODER_API_TOKEN", f"{SECRET} with a space")
    monkeypatch.setenv("COMFYUI_URL", f"ftp://me:{SECRET}@host")
    flags = {"megapixels": "99", "timeout": "nan", "worker_id": "a/b", "input_roots": ",", "cors_origins": "x.org/p"}
    problems = load(flags).problems
    assert len(problems) == 10
    assert SECRET not in "".join(problems)
    assert said(problems, "MEGAPIXELS") == (
        "MEGAPIXELS is '99' (from the command line); allowed: a number from 0.01 to 16."
    )
    assert said(problems, "UPSCALE_METHOD") == (
        "UPSCALE_METHOD is 'magic' (from the environment);"
        " allowed: one of lanczos, nearest-exact, bilinear, area, bicubic."
    )
    assert said(problems, "REST_PORT") == (
        "REST_PORT is '99999' (from .env); allowed: a whole number from 0 to 65,535."
    )
    assert "true or false" in said(problems, "NO_AUTH")
    assert "is not usable" in said(problems, "API_TOKEN")
    assert "http://127.0.0.1:8188" in said(problems, "COMFYUI_URL")
    assert "at least one folder" in said(problems, "INPUT_ROOTS")
    assert "without a path" in said(problems, "CORS_ORIGINS")
    assert "letters" in said(problems, "WORKER_ID")
    assert "above 0" in said(problems, "TIMEOUT")


@pytest.mark.parametrize("attribute", NAMES)
def test_a_problem_never_shows_a_secret_and_always_says_what_is_allowed(here: Path, attribute: str) -> None:
    loaded = load({attribute: f"\n://u:{SECRET}@host:port \n"})
    for problem in loaded.problems:
        assert SECRET not in problem or "token" not in attribute
        assert not problem.endswith(("allowed: .", "allowed: another value."))


def test_an_unknown_name_of_ours_is_a_warning_with_the_nearest_known_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text("LATENT_ENCODER_QUEUE_SZE=1\nUNRELATED=2\n")
    monkeypatch.setenv("LATENT_ENCODER_OUTPUT_DIR", "x")
    monkeypatch.setenv("LATENT_ENCODER_API_TOCKEN", SECRET)
    loaded = load({})
    text = "\n".join(loaded.warnings)
    assert len(loaded.warnings) == 3
    assert "LATENT_ENCODER_QUEUE_SZE (from .env) is no setting; did you mean LATENT_ENCODER_QUEUE_SIZE?" in text
    assert "LATENT_ENCODER_OUTPUT_DIR (from the environment) is no setting; did you mean OUTPUT_DIR?" in text
    assert "did you mean LATENT_ENCODER_API_TOKEN?" in text
    assert SECRET not in text


def test_in_our_own_file_a_name_that_is_nearly_one_of_ours_is_a_warning(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant = {
        "VAE_MODEL": "VAE_MODEL_NAME",
        "REST_PROT": "REST_PORT",
        "KAFKA_BOOTSTRAP": "KAFKA_BOOTSTRAP_SERVERS",
        "ENGINE": "LATENT_ENCODER_ENGINE",
        "queue_size": "LATENT_ENCODER_QUEUE_SIZE",
    }
    foreign = "UNRELATED POSTGRES_PASSWORD AWS_REGION TZ PATH COMPOSE_PROJECT_NAME DEBUG OTHER_PROGRAMS"
    (here / ".env").write_text("".join(f"{name}=1\n" for name in (*meant, *foreign.split())))
    monkeypatch.setenv("VAE_MODELS", "of another program")
    wanted = [f"{name} (from .env) is no setting; did you mean {setting}?" for name, setting in sorted(meant.items())]
    assert load({}).warnings == wanted


def test_a_line_of_dotenv_that_says_nothing_is_a_warning_with_its_number(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["# ours", "", "MEGAPIXELS 2", "REST_PORT: 9", "", "", f"'{SECRET}", "REST_HOST", "UPSCALE_METHOD=area"]
    (here / ".env").write_text("\n".join(lines))
    loaded = load({})
    assert loaded.warnings == [f"Line {n} of .env cannot be read; write it as NAME=value." for n in (3, 4, 7, 8)]
    assert loaded.settings.upscale_method == "area"
    assert not caplog.records


def test_a_dotenv_that_is_no_text_is_a_problem(here: Path) -> None:
    (here / ".env").write_bytes(b"MEGAPIXELS=\xff\xfe\n")
    assert "'.env'" in said(load({}).problems, ".env")


def test_secrets_and_passwords_are_not_in_the_settings_repr() -> None:
    settings = Settings(api_token=SECRET, comfyui_token=SECRET, comfyui_url=f"http://me:{SECRET}@h")
    assert SECRET not in repr(settings)
    assert settings.api_token.get_secret_value() == SECRET


def test_show_settings_prints_value_and_source_and_hides_secrets(here: Path, command_line: CommandLine) -> None:
    (here / ".env").write_text(f"LATENT_ENCODER_COMFYUI_TOKEN={SECRET}\n")
    start = time.monotonic()
    done = command_line(
        *("--show-settings", "--comfyui_url", f"http://me:{SECRET}@h/x,http://b", "--rest_port=0", "--no-auth"),
        LATENT_ENCODER_API_TOKEN=SECRET,
        LATENT_ENCODER_TIMOUT="3",
    )
    assert time.monotonic() - start < 5  # torch alone takes longer to import here
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()}
    assert list(rows) == list(NAMES.values())
    assert rows["REST_PORT"] == ["0", "command line"]
    assert rows["COMFYUI_URL"] == ["http://********@h/x,http://b", "command line"]
    assert rows["LATENT_ENCODER_NO_AUTH"] == ["true", "command line"]
    assert rows["LATENT_ENCODER_API_TOKEN"] == ["********", "environment"]
    assert rows["LATENT_ENCODER_COMFYUI_TOKEN"] == ["********", ".env"]
    assert rows["OUTPUT_DIR"] == [str(here / "output"), "default"]
    assert "did you mean LATENT_ENCODER_TIMEOUT?" in done.stderr
    assert not (here / "output").exists()


def test_show_settings_marks_what_is_not_allowed(command_line: CommandLine) -> None:
    done = command_line("--show-settings", "--megapixels", "99")
    assert done.returncode == 2
    assert "(not allowed)" in done.stdout
    assert "MEGAPIXELS is '99'" in done.stderr


def test_wrong_use_exits_2_with_every_reason(here: Path, command_line: CommandLine) -> None:
    (here / "file").touch()
    words = ["--mode", "standalone", "--image_path", "a.png", "--outptu-dir", "x", "--resolution-steps", "0"]
    done = command_line(*words, "--state-dir", "file/state", OUTPUT_DIR="file/out", MEGAPIXELS="0")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 5, done.stderr
    assert said(lines, "--outptu-dir").endswith("did you mean --output-dir?")
    assert "no folder" in said(lines, "OUTPUT_DIR '")
    assert "no folder" in said(lines, "STATE_DIR '")
    assert "allowed: a number" in said(lines, "MEGAPIXELS")
    assert "given: '0'" in said(lines, "resolution_steps")
    assert sorted(path.name for path in here.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--mode standalone or --mode rest"),
        (["--mode", "fax"], "one of standalone, rest"),
        (["--mode"], "expected one argument"),
        (["--mode", "standalone"], "--image-path"),
        (["--mode", "rest", "--report", "x"], "only --mode standalone"),
        (["photo.png"], "'photo.png' belongs to no flag"),
        (["--mode", "rest", "--rest-host", "0.0.0.0", "--rest-port", "0"], "LATENT_ENCODER_API_TOKEN"),
        (["--mode", "rest", "--rest-host", "203.0.113.9", "--no-auth"], "cannot be listened on"),
        (["--mode", "rest", "--comfyui-path", "."], "holds no ComfyUI"),
        (["--mode", "rest", "--workflow", "nothing.json"], "cannot be read"),
        (["--mode", "rest", "--workflow", str(ROOT / "workflows" / "example.json")], "format of ComfyUI's editor"),
        (["--mode", "rest", "--workflow", "a.json", "--engine", "embedded"], "runs no workflow"),
        (["--mode", "rest", "--comfyui-url", "http://a", f"http://me:{SECRET}@b"], "belongs to no flag"),
        (["--mode", "rest", "-api-token", SECRET], "no flag '-api-token'"),
    ],
)
def test_each_kind_of_wrong_use_has_its_words(
    here: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from latent_encoder.service.__main__ import main

    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert SECRET not in err


def test_a_port_that_is_taken_is_a_reason_not_to_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latent_encoder.service.__main__ import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--mode", "rest", "--rest-port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"REST_PORT {port} on 127.0.0.1 cannot be listened on (Address already in use)" in err
    assert check_start(Settings(rest_port=port), "rest", set()) == []


def test_the_check_of_a_folder_makes_and_leaves_nothing(here: Path) -> None:
    assert check_start(Settings(output_dir="a/b/c", rest_port=0), "rest", set()) == []
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("folder", ["a" * 300, "a" * 300 + "/b"])
def test_a_folder_that_no_file_system_can_have(here: Path, folder: str) -> None:
    (problem,) = check_start(Settings(output_dir=folder, rest_port=0), "rest", set())
    assert problem.startswith("OUTPUT_DIR '") and problem.endswith("cannot be written (File name too long).")


def test_an_open_address_needs_a_token_or_the_word(here: Path) -> None:
    def problems(**values: object) -> int:
        return len(check_start(Settings(rest_host="0.0.0.0", rest_port=0, **values), "rest", set()))

    assert (problems(), problems(api_token="t"), problems(no_auth=True)) == (1, 0, 0)
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "")] == [False] * 5


def test_flags_may_be_written_either_way_and_lists_repeated() -> None:
    from latent_encoder.service.command_line import parse

    words = ["--mode", "standalone", "--image_path", "a_b.png", "c.png", "--image-path=d_e.png", "--image-path", "-"]
    command = parse([*words, "--map", "a=1.b", "--map", "c=2.d,e=3.f", "--output_dir=x_y", "--file_format", "npy"])
    assert command.problems == []
    assert command.pictures == ["a_b.png", "c.png", "d_e.png", "-"]
    assert command.flags == {"map": "a=1.b,c=2.d,e=3.f", "output_dir": "x_y"}
    assert command.request == {"file_format": "npy"}


def test_refused_values_do_not_hide_other_checks(here: Path) -> None:
    loaded: Loaded = load({"megapixels": "x", "output_dir": "/dev/null/x"})
    assert loaded.refused == {"megapixels"}
    assert len(check_start(loaded.settings, "standalone", loaded.refused)) == 1

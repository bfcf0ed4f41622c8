"""The standalone door in real processes: stdout, exit codes, runs of many, resuming, interrupts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import encode, photo, png
from service.standalone_runs import ROOT, CommandLine, finish, first_answers, interrupt

from latent_encoder.models import EncodeResponse

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def command_line(here: Path) -> CommandLine:
    return CommandLine(here)


def lay(folder: Path, *names: str, seed: int = 0) -> None:
    """Pictures with these names, each another."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(64, 48, seed + number))


def files(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def latents(folder: Path) -> list[str]:
    return [name for name in files(folder) if name.endswith(".safetensors")]


def tensor(path: Path) -> bytes:
    """The tensor's bytes in a safetensors file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_one_picture_gives_one_answer_on_stdout_and_nothing_else(here: Path, command_line: CommandLine) -> None:
    (here.parent / "test.jpg").write_bytes(encode(photo(), "JPEG"))
    home = here.parent / "home"
    home.mkdir()
    words = ["--image_path", "../test.jpg", "--request-id", "first", "--correlation-id", "c", "--file-format", "npy"]
    nowhere = {"LATENT_ENCODER_ENGINE": "", "HOME": str(home), "PWD": str(here), "LATENT_ENCODER_INPUT_ROOTS": "models"}
    done = command_line.run(*words, **nowhere)
    assert done.code == 0, done.said
    (answer,) = done.answers
    EncodeResponse.model_validate(answer)
    latent = here / "output" / "first.npy"
    assert (answer["status"], answer["request_id"], answer["correlation_id"]) == ("success", "first", "c")
    assert answer["latent_file_path"] == str(latent)
    assert answer["metadata"]["file_sha256"] == hashlib.sha256(latent.read_bytes()).hexdigest()
    assert answer["metadata"]["image_name"] == "../test.jpg"
    assert answer["metadata"]["engine"] == "embedded"
    assert len([line for line in done.said.splitlines() if "embedded engine" in line]) == 1, done.said


def test_an_engine_that_cannot_be_had_is_an_answer_for_one_picture(here: Path, command_line: CommandLine) -> None:
    lay(here, "test.png", "a.png", "b.png")
    dead = {"LATENT_ENCODER_ENGINE": "comfyui", "COMFYUI_URL": "http://127.0.0.1:1"}
    done = command_line.run("--image_path", "test.png", **dead)
    assert done.code == 1
    assert done.answers[0]["error_code"] == "ENGINE_UNAVAILABLE"
    assert done.answers[0]["request_id"]
    many = command_line.run("--image_path", "a.png", "b.png", **dead)
    assert (many.code, many.answers) == (1, [])
    assert "ENGINE_UNAVAILABLE" in many.said


def test_wrong_use_of_a_run_exits_2_and_encodes_nothing(here: Path, command_line: CommandLine) -> None:
    lay(here, "a.png", "sub/a.png")
    for words, reason in {
        ("--image_path", ".", "sub"): "would share a latent file",
        ("--image_path", "*.gif"): "No file fits '*.gif'",
        ("--image_path", ".", "--request-id", "x"): "--request-id is for one picture",
        ("--image_path", ".", "--report", "nowhere/run.jsonl"): "'nowhere/run.jsonl' cannot be written",
        ("--image_path", "a.png", "--report", "./a.png"): "is one of the pictures",
        ("--image_path", "a.png", "--request-id", "a/b"): "request_id",
    }.items():
        done = command_line.run(*words)
        assert (done.code, done.answers) == (2, []), words
        assert reason in done.said
    assert not (here / "output").exists()
    (here / "empty").mkdir()
    empty = command_line.run("--image_path", "empty")
    assert (empty.code, empty.answers) == (2, [])
    assert "The folder 'empty' holds no picture (.png, " in empty.said
    nothing = command_line.run("--image_path", "-")
    assert (nothing.code, nothing.answers) == (0, [])
    assert "There is no picture in what --image-path names." in nothing.said


def test_a_folder_is_mirrored_reported_in_order_and_goes_on_where_it_stopped(
    here: Path, command_line: CommandLine
) -> None:
    good = ["a.png", "b.JPG", "sub/c.png", "sub/deep er/größe 猫.png"]
    lay(here / "set", *good)
    (here / "set" / "aa bad.png").write_bytes(b"this is no picture")
    (here / "set" / "notes.txt").write_text("not a picture")
    order = ["a.png", "aa bad.png", *good[1:]]
    done = command_line.run("--image_path", "set", "--report", "run.jsonl")
    assert done.code == 3, done.said
    assert done.names == order
    assert [answer["error_code"] for answer in done.answers] == [None, "IMAGE_INVALID", None, None, None]
    assert (here / "run.jsonl").read_text(encoding="utf-8").splitlines() == [
        json.dumps(answer, separators=(",", ":"), ensure_ascii=False) for answer in done.answers
    ]
    output = here / "output"
    assert latents(output) == sorted(f"{name}.safetensors" for name in good)
    assert "5 pictures: 4 encoded, 0 already there, 1 failed, in " in done.said
    assert "set/aa bad.png: IMAGE_INVALID" in done.said

    # One latent is damaged, one lost, one picture is another now; names come on stdin, and one of them is gone.
    tensors = {name: tensor(output / f"{name}.safetensors") for name in good}
    damaged, lost, _, kept = (output / f"{name}.safetensors" for name in good)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    lost.unlink()
    lay(here / "set" / "sub", "c.png", seed=50)
    kept_since = kept.stat().st_mtime_ns
    names = [*reversed(good), "gone.png"]
    again = command_line.run("--image_path", "-", stdin="\n".join(names).encode(), inside="set")
    assert again.code == 3, again.said
    assert again.names == names
    assert [answer["metadata"].get("reused") for answer in again.answers] == [True, False, False, False, None]
    assert again.answers[-1]["error_code"] == "IMAGE_NOT_FOUND"
    assert kept.stat().st_mtime_ns == kept_since
    assert [tensor(output / f"{name}.safetensors") == tensors[name] for name in good] == [True, True, False, True]
    assert latents(output) == sorted(f"{name}.safetensors" for name in good)


def test_pictures_that_are_named_one_by_one_or_by_a_glob(here: Path, command_line: CommandLine) -> None:
    lay(here, "in/a.png", "in/sub/b.png", "c [1].png")
    lay(here.parent, "d.png")
    done = command_line.run("--image_path", "in/**/*.png", "c [1].png", "--image_path", "../d.png")
    assert done.code == 0, done.said
    assert done.names == ["in/a.png", "in/sub/b.png", "c [1].png", "d.png"]
    assert latents(here / "output") == sorted(f"{name}.safetensors" for name in done.names)


def test_after_kill_9_nothing_looks_done_that_is_not_and_the_rest_is_made(
    here: Path, command_line: CommandLine
) -> None:
    names = [f"{number:02}.png" for number in range(40)]
    lay(here / "set", *names)
    large = {"MEGAPIXELS": "0.25"}  # a small one would be done before it is killed
    killed = command_line.start("--image_path", "set", "--report", "run.jsonl", **large)
    before = first_answers(killed, 3)
    killed.kill()
    assert finish(killed, before=before).code == -signal.SIGKILL
    there = latents(here / "output")
    assert 3 <= len(there) < 40
    done = command_line.run("--image_path", "set", "--report", "run.jsonl", **large)
    assert done.code == 0, done.said
    assert done.names == names
    reused = [answer["metadata"]["image_name"] for answer in done.answers if answer["metadata"]["reused"]]
    assert len(reused) >= 3
    assert {f"{name}.safetensors" for name in reused} <= set(there)
    assert len((here / "run.jsonl").read_text().splitlines()) == 40
    assert latents(here / "output") == [f"{name}.safetensors" for name in names]
    for answer in done.answers:
        latent = Path(answer["latent_file_path"]).read_bytes()
        assert hashlib.sha256(latent).hexdigest() == answer["metadata"]["file_sha256"]


def test_ctrl_c_finishes_what_is_in_hand(here: Path, command_line: CommandLine) -> None:
    names = [f"{number:02}.png" for number in range(40)]
    lay(here / "set", *names)
    process = command_line.start("--image_path", "set", "--report", "run.jsonl", MEGAPIXELS="0.5")
    before = first_answers(process, 3)
    interrupt(process)
    done = finish(process, before=before)
    assert done.code == 130, done.said
    assert 3 <= len(done.names) < 40
    assert done.names == names[: len(done.names)]
    assert all(answer["status"] == "success" for answer in done.answers)
    assert latents(here / "output") == [f"{name}.safetensors" for name in done.names]
    assert len((here / "run.jsonl").read_text().splitlines()) == len(done.names)
    assert "Ctrl-C again stops at once" in done.said
    assert f"{40 - len(done.names)} not begun" in done.said


def test_a_second_signal_stops_at_once(here: Path, command_line: CommandLine) -> None:
    (here / "set").mkdir()
    (here / "set" / "a.png").write_bytes(b"no picture")
    lay(here / "set", "b.png", "c.png")
    process = command_line.start("--image_path", "set", MEGAPIXELS="16")  # takes minutes
    before = first_answers(process, 1)
    assert process.stderr
    while b"has started" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    interrupt(process)
    time.sleep(0.5)
    assert process.poll() is None
    sent = time.monotonic()
    process.terminate()
    done = finish(process, before=before)
    assert (done.code, done.names) == (130, ["a.png"])
    assert time.monotonic() - sent < 10
    assert files(here / "output") == []


def test_ctrl_c_before_anything_is_begun_stops_at_once(command_line: CommandLine) -> None:
    process = command_line.start("--image_path", "-")
    time.sleep(1.5)  # it waits for names by then
    interrupt(process)
    done = finish(process)
    assert (done.code, done.answers) == (130, [])
    assert "Traceback" not in done.said


DEAF = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""
POLITE = """
import http.server, json, signal, sys, time

class Stats(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())

try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Stats).serve_forever()
except KeyboardInterrupt:
    print("asked to end", flush=True)
    time.sleep(2)
"""


def comfyui(folder: Path, main: str) -> dict[str, str]:
    """The settings of a ComfyUI that is this program, which has none of our nodes."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").touch()
    (folder / "main.py").write_text(main)
    return {"LATENT_ENCODER_ENGINE": "comfyui", "COMFYUI_PATH": str(folder)}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def when_it_says(log: Path, words: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and words in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_engine_starts_stops_at_once_and_quietly(
    here: Path, command_line: CommandLine, number: signal.Signals
) -> None:
    lay(here, "a.png")
    process = command_line.start("--image_path", "a.png", **comfyui(here / "fake", DEAF))
    base = here / ".latent_encoder" / "comfyui-0"
    when_it_says(base / "comfyui.log", "deaf")
    pid = int((base / "comfyui.pid").read_text())
    process.send_signal(number)
    sent = time.monotonic()
    done = finish(process)
    assert time.monotonic() - sent < 4
    assert (done.code, done.answers) == (130, [])
    assert "Stopping." in done.said
    assert "ERROR" not in done.said
    assert "Traceback" not in done.said
    assert not is_running(pid)


def test_signals_while_the_engine_is_closed_leave_nothing_behind(here: Path, command_line: CommandLine) -> None:
    lay(here, "a.png")
    process = command_line.start("--image_path", "a.png", **comfyui(here / "fake", POLITE))
    base = here / ".latent_encoder" / "comfyui-0"
    when_it_says(base / "comfyui.log", "asked to end")  # the engine could not be had
    pid = int((base / "comfyui.pid").read_text())
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    done = finish(process)
    assert done.code == 1
    assert done.answers[0]["error_code"] == "NODES_MISSING"
    assert not is_running(pid)


def test_what_files_answer_waits_for_no_engine(here: Path, command_line: CommandLine) -> None:
    lay(here / "set", "a.png", "b.png", "c.png")
    assert command_line.run("--image_path", "set").code == 0
    assert command_line.run("--image_path", "set/a.png", "--request-id", "one").code == 0
    other = comfyui(here / "fake", DEAF)  # would be waited for
    many = command_line.run("--image_path", "set", **other)
    assert (many.code, [answer["metadata"]["reused"] for answer in many.answers]) == (0, [True] * 3), many.said
    one = command_line.run("--image_path", "set/a.png", "--request-id", "one", **other)
    assert (one.code, one.answers[0]["metadata"]["reused"]) == (0, True), one.said
    conflict = command_line.run("--image_path", "set/b.png", "--request-id", "one", **other)
    assert conflict.answers[0]["error_code"] == "REQUEST_ID_CONFLICT"
    assert not (here / ".latent_encoder").exists()
    lay(here / "set", "b.png", seed=9)
    again = command_line.run("--image_path", "set")
    assert [answer["metadata"]["reused"] for answer in again.answers] == [True, False, True]


def test_a_run_of_many_ends_where_the_engine_it_needs_cannot_be_had(here: Path, command_line: CommandLine) -> None:
    lay(here / "set", "a.png", "b.png", "c.png")
    assert command_line.run("--image_path", "set").code == 0
    lay(here / "set", "b.png", seed=9)
    dead = {"LATENT_ENCODER_ENGINE": "comfyui", "COMFYUI_URL": "http://127.0.0.1:1"}
    done = command_line.run("--image_path", "set", **dead)
    assert (done.code, done.names) == (1, ["a.png"])
    assert "ENGINE_UNAVAILABLE" in done.said


def test_a_run_whose_answers_nobody_reads_stops(command_line: CommandLine) -> None:
    names = "\n".join(f"gone {number}.png" for number in range(5000))  # more answers than a pipe holds
    process = command_line.start("--image_path", "-")
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(names.encode())
    process.stdin.close()
    assert process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read().decode()
    assert process.wait(10) == 1
    assert "An answer cannot be written" in said
    assert " not begun" in said


def test_what_libraries_print_goes_to_stderr() -> None:
    script = """if True:
        import os
        from latent_encoder.service.doors.standalone import stdout_for_answers
        with stdout_for_answers() as stream:
            print("a library's print")
            os.write(1, b"and one in C\\n")
            os.system("echo and a program")
            stream.write("answer é\\n")
        print("after")
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert done.stdout == "answer é\nafter\n"
    assert set(done.stderr.splitlines()) == {"a library's print", "and one in C", "and a program"}

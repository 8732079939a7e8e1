"""The doctor on a machine with a GPU. Skipped if llama.cpp has none."""

from pathlib import Path

from click.testing import CliRunner

from mycelia.node.commands.doctor import doctor
from mycelia.node.doctor.machine import examine
from tests.node.engine.gpus import GPUS, on_a_gpu

pytestmark = on_a_gpu


def test_the_doctor_finds_the_gpu_and_puts_the_model_there(tmp_path: Path) -> None:
    report = examine("smollm2", tmp_path)
    assert report.ok and report.llama_cpp is not None and report.llama_cpp.can_offload
    assert {gpu.name for gpu in GPUS} <= {device.name for device in report.devices if device.kind in ("gpu", "igpu")}
    assert report.model is not None and report.model.gpu_layers == report.model.layers == 31
    assert GPUS[0].name in report.model.offload and report.model.cells >= 8192
    assert not any("GPU" in hint for hint in report.hints)


def test_the_report_for_people(tmp_path: Path) -> None:
    done = CliRunner().invoke(doctor, ["--offline", "--data-dir", str(tmp_path)])
    assert done.exit_code == 0
    for words in ("offloads to a GPU: yes", f"{GPUS[0].name} ({GPUS[0].kind})", f"all 31 layers on {GPUS[0].name}"):
        assert words in done.stdout

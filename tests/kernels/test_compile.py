"""Every .cu compiles for sm_80 and sm_90 without a GPU, and keeps its variables in registers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spa.kernels import ctf, loader, posterior, survivors

DEFINES: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "slices": ((("DIM", "2"),), (("DIM", "3"),)),
    "posterior": (posterior.DEFINES,),
    "ctf": (ctf.DEFINES, ctf.SYMMETRIC_DEFINES),
    "survivors": tuple(survivors.survivor_defines(n_psi) for n_psi in (6, 12, 24, 48, 96, 192)),
}
"""The preambles that a kernel file is compiled with; a file not named here needs none."""

STEMS = sorted(path.stem for path in Path(loader.__file__).parent.glob("*.cu"))
_REPORT = re.compile(
    r"Function properties for (\w+)\s.*?(\d+) bytes spill stores, (\d+) bytes spill loads\s.*?Used (\d+) registers",
    re.DOTALL,
)


def compile_cubin(code: str, architecture: str) -> tuple[bool, str]:
    """Compile CUDA C by NVRTC; returns success and the log, which holds ptxas' report per kernel."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed: pip install .[test]")
    error, program = nvrtc.nvrtcCreateProgram(code.encode(), b"module.cu", 0, [], [])
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS
    options = [f"-arch={architecture}".encode(), b"-std=c++17", b"--ptxas-options=-v"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    return error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode(errors="replace")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("stem", "defines"), [(s, d) for s in STEMS for d in DEFINES.get(s, ((),))])
def test_compiles_without_spills(capsys, stem, defines, architecture):
    compiled, log = compile_cubin(loader.source(stem, defines), architecture)
    assert compiled, log
    reports = _REPORT.findall(log)
    assert len(reports) == loader.source(stem).count('extern "C" __global__'), log
    with capsys.disabled():
        for name, stores, loads, registers in reports:
            label = " ".join("=".join(pair) for pair in defines if len(pair[1]) < 40)
            print(
                f"\n  {architecture} {stem}.cu {label} {name}: {registers} registers, {stores}+{loads} bytes spilled",
                end="",
            )
    assert all((stores, loads) == ("0", "0") for _, stores, loads, _ in reports)


def test_compiler_messages_name_the_file_and_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken.cu").write_text('// first line\nextern "C" __global__ void k() { undefined_name(); }\n')
    monkeypatch.setattr(loader, "HERE", tmp_path)
    compiled, log = compile_cubin(loader.source("broken", (("DIM", "3"),)), "sm_80")
    assert not compiled
    assert "broken.cu(2)" in log

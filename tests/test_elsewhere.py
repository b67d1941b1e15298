from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

SCRIPT = Path(__file__).with_name("elsewhere.py")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be told of an accelerator that is not there",
)
def test_a_step_of_every_head_and_target_stays_on_the_accelerator_and_reads_nothing_back() -> None:
    # a process of its own, for torch forgets no accelerator
    ended = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    left, reads, back, trained = ended.stdout.splitlines()
    assert "elsewhere" in left, "a tensor left on the CPU was not noticed"
    assert "aten._local_scalar_dense" in reads, "a number read back was not noticed"
    assert "copies to the CPU" in back, "a copy to the CPU was not noticed"
    assert int(trained.split()[0]) >= 20

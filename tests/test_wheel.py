"""The wheel that a user installs holds all that the package needs at run time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_built_wheel_runs_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "pathfm").rglob("*") if path.is_file()}
    assert names >= {name for name in source if "__pycache__" not in name}
    assert any(name.endswith("entry_points.txt") for name in names)
    program = "import pathfm.report, sys; from pathfm.cli import main; print(pathfm.report.__file__); sys.exit(main(['backbones']))"
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert str(tmp_path / "installed") in result.stdout
    assert "uni2-h" in result.stdout

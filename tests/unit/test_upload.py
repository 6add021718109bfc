"""What `ray job submit --working-dir .` uploads; the job itself runs in tests/e2e."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
UPLOAD_LIMIT = 20 * 2**20


def test_the_uploaded_directory_is_small() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    ignored = (ROOT / ".rayignore").read_text().split()
    names = [name.decode() for name in tracked if name]
    kept = [n for n in names if not any(n.startswith(p.strip("/")) for p in ignored)]
    assert sum((ROOT / n).stat().st_size for n in kept if (ROOT / n).exists()) < UPLOAD_LIMIT

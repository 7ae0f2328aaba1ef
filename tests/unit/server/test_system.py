import subprocess
import sys

CODE = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
from bridge.server.system import harden
harden()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))
print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_process_leaves_no_core_dump_and_takes_all_files_that_it_may_have() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["True", "(0, 0)"]

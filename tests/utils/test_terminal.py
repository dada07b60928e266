"""What reaches the terminal: a warning about the user's input as its text alone, and nothing of libraries' start-up."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from onpolicy.utils.errors import UserNotice
from onpolicy.utils.terminal import plain_notices, quiet_libraries


def test_notices_are_their_text() -> None:
    plain_notices()
    assert warnings.formatwarning(UserNotice("data: 1 row\x1b[2J"), UserNotice, "f.py", 3) == "data: 1 row\\x1b[2J\n"
    assert warnings.formatwarning(UserWarning("other"), UserWarning, "f.py", 3, "") == "f.py:3: UserWarning: other\n"


def test_what_python_says_of_code_that_it_compiles_is_shown_of_a_users_own_alone() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        for path in ("/env/lib/python3.11/site-packages/package/file.py", "/home/me/rewards.py"):
            compile("'' is ''", path, "exec")
    assert [warning.filename for warning in caught] == ["/home/me/rewards.py"]


@pytest.mark.process
def test_libraries_draw_no_bars_into_a_file() -> None:
    script = (
        "from onpolicy.utils.terminal import quiet_libraries\nquiet_libraries()\n"
        "from tqdm.auto import tqdm\nprint(len(list(tqdm(range(3), desc='Loading weights'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n" and done.stderr == ""

"""Loaded by Python at start when this folder is on the path: kills the process where a test asks for it."""

import os
import signal
import sys

moment = os.environ.get("ONPOLICY_TEST_DIE", "")
if moment:

    class _Finder:
        """Waits for onpolicy's modules and wraps the function in which to die."""

        def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name == "onpolicy.run.launch":
                sys.meta_path.remove(self)
                _prepare(moment)

    def _prepare(moment: str) -> None:
        import onpolicy.run.checkpoint as checkpoint
        import onpolicy.trainer.trainer as trainer

        if moment == "step":
            original = trainer.PolicyTrainer._update

            def update(self, *arguments):  # type: ignore[no-untyped-def]
                if self.steps_done == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, *arguments)

            trainer.PolicyTrainer._update = update  # type: ignore[method-assign]
        else:
            written = checkpoint.write_state

            def write(folder, state):  # type: ignore[no-untyped-def]
                if state["step"] == 3:
                    (folder / "state.json").write_text('{"dict": [["st')
                    os.kill(os.getpid(), signal.SIGKILL)
                written(folder, state)

            checkpoint.write_state = write

    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]

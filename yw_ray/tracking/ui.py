"""MLflow's UI over a local store, on loopback.

Place in the flow: the last step of a user's visit; nothing here is needed to train.
Source: `mlflow server --help`, MLflow 3.17.
"""

import os
import subprocess
import sys
from pathlib import Path


def ui_command(store: Path, port: int = 5000) -> list[str]:
    """The command that serves the UI.

    Args:
        store: the sqlite file, or the folder that holds it as `mlflow.db`.
        port: on 127.0.0.1.
    Raises: ValueError in one line when there is no store.
    """
    database = store / "mlflow.db" if store.is_dir() else store
    if not database.is_file():
        raise ValueError(
            f"{database} does not exist; give the folder of the runs (tracking.storage) "
            "or the path of its mlflow.db"
        )
    database = database.resolve()
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(database.parent / "mlartifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def serve_ui(store: Path, port: int = 5000) -> int:
    """Serve until interrupted; returns the server's exit code.

    Raises: ValueError when there is no store.
    """
    command = ui_command(store, port)
    print(f"MLflow starts at http://127.0.0.1:{port} (takes a while); stop it with Ctrl-C")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", **os.environ}
    with subprocess.Popen(command, env=quiet) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return 0

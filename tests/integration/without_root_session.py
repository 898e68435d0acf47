"""Run by test_without_root.py as an ordinary user: a server of theirs, and an agent's session on it.

Prints one JSON object with what was seen.
"""

import json
import os
import pathlib
import subprocess
import sys
import time


def main() -> None:
    data = pathlib.Path(os.environ["HOME"]) / "data"
    server = subprocess.Popen([sys.executable, "-m", "glovebox_server", "serve", "--port", "0", "--data-dir", data])
    try:
        deadline = time.monotonic() + 200
        while not (data / "server.json").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        facts = json.loads((data / "server.json").read_text())
        os.environ.update(E2B_API_KEY=facts["key"], E2B_API_URL=facts["url"], E2B_SANDBOX_URL=facts["url"])
        seen = session()
    finally:
        server.terminate()
        seen_exit = server.wait(60)
    left = sorted(str(path.relative_to(data)) for folder in ("zygotes", "links") for path in (data / folder).iterdir())
    print(json.dumps({**seen, "exit": seen_exit, "left": left, "uid": os.getuid()}))


def session() -> dict[str, object]:
    from e2b_code_interpreter import Sandbox

    with Sandbox.create(timeout=120) as box, Sandbox.create(timeout=120) as other:
        pid_map = "cat /proc/self/uid_map"
        return {
            "code": box.run_code("40 + 2").text,
            "who": box.commands.run("whoami; touch mine && stat -c %U mine").stdout,
            "root": box.commands.run("whoami; touch /etc/mine && stat -c %U /etc/mine", user="root").stdout,
            "maps": [each.commands.run(pid_map).stdout.split() for each in (box, other)],
            "usr": box.commands.run("touch /usr/bin/mine 2>&1; echo $?", user="root").stdout,
            "chart": bool(box.run_code("import matplotlib.pyplot as p; p.plot([1, 2]); p.show()").results[0].png),
            "memory": box.get_metrics()[0].mem_total,
            "network": box.run_code("import socket; socket.create_connection(('1.1.1.1', 53), 2)").error is not None,
        }


if __name__ == "__main__":
    main()

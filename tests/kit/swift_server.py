"""OpenStack Swift with its S3 interface, on loopback: `python -m tests.kit.swift_server FOLDER`.

Its four servers (proxy, account, container, object) run in this one process, each listening on a
port of its own and keeping its data below the folder. The proxy's address is printed once it
answers. The process ends when its stdin does.
"""

from __future__ import annotations

import sys
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
REGION = "us-east-1"

_PROXY = f"""
[DEFAULT]
swift_dir = {{folder}}
[pipeline:main]
pipeline = catch_errors s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 10
node_timeout = 60
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
location = {REGION}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET_KEY} .admin
[filter:slo]
use = egg:swift#slo
"""
_SERVER = """
[DEFAULT]
devices = {folder}/devices
swift_dir = {folder}
mount_check = false
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""


def main() -> None:
    """Serve until stdin ends."""
    import eventlet
    from swift.common import utils

    utils.monkey_patch()
    folder = Path(sys.argv[1])
    configuration = folder / "swift.conf"
    configuration.write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    utils.SWIFT_CONF_FILE = str(configuration)
    utils.validate_configuration()

    from eventlet import wsgi
    from swift.common.ring import RingBuilder
    from swift.common.wsgi import loadapp

    (folder / "devices" / "disk").mkdir(parents=True)
    sockets = {}
    for kind in ("account", "container", "object", "proxy"):
        sockets[kind] = eventlet.listen(("127.0.0.1", 0))
        text = _PROXY if kind == "proxy" else _SERVER
        (folder / f"{kind}.conf").write_text(text.format(folder=folder, kind=kind))
        if kind != "proxy":
            ring = RingBuilder(0, 1, 1)
            port = sockets[kind].getsockname()[1]
            address = {"ip": "127.0.0.1", "port": port}
            address |= {"replication_ip": "127.0.0.1", "replication_port": port}
            ring.add_dev({"region": 1, "zone": 1, "device": "disk", "weight": 1, **address})
            ring.rebalance()
            ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger

    for kind, socket in sockets.items():
        app = loadapp(str(folder / f"{kind}.conf"))
        eventlet.spawn(wsgi.server, socket, app, NullLogger(), protocol=SwiftHttpProtocol)
    print(f"http://127.0.0.1:{sockets['proxy'].getsockname()[1]}", flush=True)
    eventlet.tpool.execute(sys.stdin.buffer.read)


if __name__ == "__main__":
    main()

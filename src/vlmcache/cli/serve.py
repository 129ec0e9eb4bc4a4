"""`vlmcache serve`."""

import sys
from typing import Annotated

import typer

from vlmcache.cli.options import Answer, Call, Models, Yes, command

EXAMPLES = """Examples:

  vlmcache serve
  vlmcache serve qwen_vl_2b org/model@v1.0 --listen 0.0.0.0:9401 --token-file serve-token
  vlmcache serve --all --listen 192.168.1.5:9401 --allow 192.168.1.0/24 --yes
  HF_ENDPOINT=http://box:9401 HF_TOKEN=$(cat serve-token) vlmcache pull qwen_vl_2b"""


@command
def serve(
    call: Call,
    models: Models = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="Answer here, by default on port 9401 to this machine alone; beyond it, name "
            "models or add --all.",
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Serve every complete model of the cache, after asking.")
    ] = False,
    yes: Yes = False,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask clients for the token in this file, which only you may read; by default "
            "for the one in VLMCACHE_SERVE_TOKEN.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Ask no token from this network, for example 192.168.1.0/24; by default from "
            "none. Repeat it for more.",
            show_default=False,
        ),
    ] = None,
    include_gated: Annotated[
        bool,
        typer.Option(
            "--include-gated",
            help="Serve the models that are named even if the hub gives them to some users only.",
        ),
    ] = False,
    tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Use TLS with this certificate, a PEM file; plain HTTP by default.",
        ),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read the certificate's key from this file; by default from the certificate's.",
        ),
    ] = None,
    limit_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Limit the bytes per second of all clients together, for example to 50MB; "
            "unlimited by default.",
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            min=1,
            max=65536,
            help="Close connections beyond this number at once; 256 by default.",
        ),
    ] = None,
) -> Answer:
    """Serve the cache, read-only, as a hub endpoint for other machines.

    Only complete models are served, and each file is checked against its hash before it is sent.
    Ends with Ctrl-C.
    """
    from vlmcache.cli.confirmation import permission

    cache = call.cache
    if not yes:
        cache.confirm = permission(json=call.json)
    server = cache.serve(
        models or None,
        listen=listen,
        all=all_,
        token_file=token_file,
        allow=allow or (),
        include_gated=include_gated,
        tls_cert=tls_cert,
        tls_key=tls_key,
        limit_rate=limit_rate,
        max_connections=max_connections,
    )
    if call.quiet and not call.json:
        print(server.address, flush=True)
    elif not call.json:
        from vlmcache.show.console import console
        from vlmcache.show.prose import Prose

        for line in server.start_lines():
            console(sys.stderr).print(Prose(line))
        sys.stderr.flush()
    return Answer(server.run(), ids=())

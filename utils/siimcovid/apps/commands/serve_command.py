"""`siimcovid serve --weights DIR`: the web page and the JSON endpoint, on a production server."""

import argparse
from pathlib import Path

EXAMPLE = "siimcovid serve --weights runs/demo/weights --port 5000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--weights", type=Path, help="folder of trained stages (default: search below /kaggle/input)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address or name to listen on, * for all (default 127.0.0.1: this machine)"
    )
    parser.add_argument("--port", type=int, default=5000, help="default 5000; 0 takes a free one")
    parser.add_argument("--parallel", type=int, default=1, help="predictions at a time (default 1)")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait for their turn (default 16)")
    parser.add_argument("--max-megabytes", type=int, default=128, help="largest request (default 128)")


#: Requests that may be held at once, a thread each.
MOST_REQUESTS = 1000


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    import logging
    import signal
    import sys

    from siimcovid.core.errors import InputError
    from siimcovid.core.paths import find_weights

    try:
        import waitress

        from siimcovid.apps.web.web_app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"the web page needs {error.name}: pip install 'siimcovid[web]'") from None
    from siimcovid.apps.web.listening_sockets import open_sockets, url
    from siimcovid.apps.web.request_queue import Queue
    from siimcovid.apps.web.uploaded_files import Limits
    from siimcovid.inference import trained_model

    if min(args.parallel, args.max_megabytes) < 1 or args.queue < 0:
        raise InputError("--parallel and --max-megabytes must be at least 1, --queue at least 0")
    if args.parallel + args.queue > MOST_REQUESTS:
        raise InputError(f"--parallel and --queue must be at most {MOST_REQUESTS} together")
    sockets = open_sockets(args.host, args.port)
    model = trained_model.load(find_weights(args.weights))
    app = create_app(model, Limits(megabytes=args.max_megabytes), Queue(args.parallel, args.queue))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that requests wait is no news
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as process 1 of a container it would not end otherwise
    server = waitress.create_server(
        app,
        sockets=sockets,
        threads=args.parallel + args.queue + 4,  # all who may wait, and some to turn others away
        max_request_body_size=args.max_megabytes << 21,  # up to twice the limit is answered with our own sentence
        connection_limit=args.parallel + args.queue + 50,  # the rest wait before their upload is taken
        ident=None,
    )
    print(f"{' '.join(map(url, sockets))}  models: {', '.join(model.models)}", flush=True)
    server.run()
    return 0

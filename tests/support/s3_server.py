"""An S3 server on this machine, for the length of a test, that counts what it is asked for and can be told to fail."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Server:
    """``gets`` counts the GETs of each key. ``failures``: how many further GETs of a key get an answer 503."""

    url: str
    gets: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which botocore finds it."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip

    def client(self):
        """boto3's."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url, aws_access_key_id="key", aws_secret_access_key="secret",
                            region_name="us-east-1")  # fmt: skip

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Put the files of a folder into a new bucket. Returns their URL."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for file in folder.iterdir():
            client.upload_file(str(file), bucket, f"{prefix}/{file.name}")
        self.gets.clear()
        return f"s3://{bucket}/{prefix}"

    def fetched(self) -> dict[str, int]:
        """GETs by file name."""
        return {key.rsplit("/", 1)[-1]: count for key, count in sorted(self.gets.items())}


@contextmanager
def s3_server() -> Iterator[Server]:
    """moto's S3, on a free port of the loopback address."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server, inner = Server(""), DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        key = environ["PATH_INFO"].lstrip("/")
        if environ["REQUEST_METHOD"] == "GET":
            server.gets[key] += 1
            if server.failures[key] > 0:
                server.failures[key] -= 1
                start_response("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
        return inner(environ, start_response)

    running = make_server("127.0.0.1", 0, application, threaded=True)
    server.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        thread.join()

"""The artifact store in S3. Needs django-storages[s3]; imported only where LYRA_ARTIFACTS is s3://…"""

from typing import Any

from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError
from storages.backends.s3 import S3Storage


class S3ArtifactStorage(S3Storage):
    """A bucket, or a part of one.

    That it is away is said within seconds; boto's own limits hold a request for minutes.
    """

    # What is raised where S3 is away or refuses; see `storage.reaching_store`.
    faults = (Boto3Error, BotoCoreError, ClientError, RetriesExceededError)

    def get_default_settings(self) -> dict[str, Any]:
        patience = Config(connect_timeout=3, read_timeout=20, retries={"total_max_attempts": 3})
        return super().get_default_settings() | {"client_config": patience}

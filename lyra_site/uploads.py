"""Where Django keeps large files that a form sends, until the request is over."""

import tempfile
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler

from adapters_app import scratch


class TemporaryFiles(FileUploadHandler):
    """Files without a name in LYRA_HOME, as everything else that is written. They are gone with
    the request, also where it breaks off, its process is killed or the disk is full; Django's own
    keeps them then, where names end as the sender's does, which may be longer than a name can be.
    """

    file: UploadedFile

    def new_file(self, *args: Any, **named: Any) -> None:
        super().new_file(*args, **named)
        self.file = UploadedFile(
            tempfile.TemporaryFile(dir=scratch.place()),  # noqa: SIM115  the request closes it
            self.file_name,
            self.content_type,
            0,
            self.charset,
            self.content_type_extra,
        )

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self.file.write(raw_data)

    def file_complete(self, file_size: int) -> UploadedFile:
        self.file.seek(0)
        self.file.size = file_size
        return self.file

    def upload_interrupted(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

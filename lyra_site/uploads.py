"""Where Django keeps large files that a form sends, until the request is over."""

from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import FileUploadHandler, TemporaryFileUploadHandler


class TemporaryFiles(TemporaryFileUploadHandler):
    """Django's own ends the names of its temporary files as the sender's name ends, which may be
    longer than a name can be."""

    def new_file(self, *args: Any, **named: Any) -> None:
        FileUploadHandler.new_file(self, *args, **named)
        self.file = TemporaryUploadedFile(
            "upload", self.content_type, 0, self.charset, self.content_type_extra
        )
        self.file.name = self.file_name

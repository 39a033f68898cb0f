"""The ClientApp that Flower starts anew for every message: it hands the message to the site and brings the answer back.

The site is the process that `fl-lightning client` runs: it holds the base model and the records, see
`fl_lightning.network.site.site`. Neither torch nor transformers is imported here.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_lightning.network.flower.local_socket import connect
from fl_lightning.network.flower.server_app import from_record, to_record


class DepartmentLoraClient(ClientApp):
    """A department's client as Flower sees it; every kind of message goes to the resident site.

    Args:
        arguments: those of Flower's ClientApp.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for kind in (self.query, self.train, self.evaluate):
            kind()(_ask_site)


def _ask_site(message: Message, context: Context) -> Message:
    connection = connect()
    try:
        connection.send_bytes(from_record(message.content))
        return Message(to_record(connection.recv_bytes()), reply_to=message)
    finally:
        connection.close()


app = DepartmentLoraClient()

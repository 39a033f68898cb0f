"""The ClientApp, a new process for every message: hands the message to the resident site and returns the reply.

The site is the process of `fl-lightning client`, which holds base model and records, see
`fl_lightning.network.site.site`. Neither torch nor transformers is imported here, so a message costs no model loading.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_lightning.network.flower.local_socket import connect
from fl_lightning.network.flower.server_app import from_record, to_record


class DepartmentLoraClient(ClientApp):
    """A department's client as Flower sees it; messages of every kind go to the resident site.

    Args:
        arguments: of Flower's ClientApp.
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

"""From folders of records to packed rows of tokens.

=============  ==================================================================================
file           does
=============  ==================================================================================
records        JSONL and JSON files, and the conversation in a record
layout         departments and clients in a folder; the draw of held-out records
tokenization   records as token ids, with a mark on the supervised ones
client_data    the tokenized records of all clients, or of some
packing        batches without padding
partition/     one pile of records dealt out to departments and clients
inspection/    all problems of a folder at once
=============  ==================================================================================
"""

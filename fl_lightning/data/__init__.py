"""From folders of records to packed rows of tokens.

=============  ==================================================================================
file           does
=============  ==================================================================================
records        a record: the turns of a conversation
record_forms   JSON values as records: Alpaca, prompt and completion, messages, ShareGPT, text
messages       messages of a conversation: roles, text parts, tool calls, weights
record_keys    keys that are not read: errors if they could change what is learned
record_files   JSONL and JSON files, with file and line
client_files   the files of one client
layout         departments and clients in a folder; the draw of held-out records
tokenization   records as token ids, with a mark on the supervised ones
chat_template  the template of a run, its variables, date and system turns
answers        where the answers are in the text of a conversation
end_tokens     the tokens that end an answer
client_data    the tokenized records of all clients, or of some
record_table   one file or data set with columns for department and client
table_rows     the lines of such a file, the rows of such a data set
table_index    whose each row is, kept on disk
teams          clients of several departments as one
lazy_clients   clients that are read when they are first needed
token_store    tokens of clients on disk, shared by runs
packing        batches without padding
partition/     one pile of records dealt out to departments and clients
inspection/    all problems of a folder at once
canaries       records that an auditor adds by fair coins
exclusion      clients, departments and records that are left out
splits         which records of a client train, which are held out, and which choose
row_padding    rows of a few sizes, for what is recorded once
transfer       copies to a device, for which the host does not wait
=============  ==================================================================================
"""

"""From folders of records to packed rows of tokens."""

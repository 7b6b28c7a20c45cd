"""From files to uint8 batches; knows no network and no MXNet."""

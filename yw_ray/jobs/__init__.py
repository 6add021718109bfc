"""The only room that imports ray: prepare, stream, train, sweep, launch."""

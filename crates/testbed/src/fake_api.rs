//! A fake API server.

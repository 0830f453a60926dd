//! A fake API server that injects faults.

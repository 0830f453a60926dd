//! All fourteen schedulers (T21): set, read back, and their effect where it can be told apart.

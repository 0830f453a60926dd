//! The fake kernel and the real one answer alike.

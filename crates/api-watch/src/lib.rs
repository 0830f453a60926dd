//! api-watch

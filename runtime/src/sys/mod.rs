//! System calls that no crate wraps, each as a small function that is safe to call.
//!
//! The only modules with `unsafe` in them. Errors are bare `io::Error`s: the caller names what it worked on.
#![allow(unsafe_code)]

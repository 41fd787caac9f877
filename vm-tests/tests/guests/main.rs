//! Guests that try the product, one test each. They are tests of one program, which boots two at a time: a guest waits
//! often, for its boot as for its pods.
#![cfg(feature = "vm")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

mod installation;
mod other_kernels;
mod platform;
mod power;
mod product;

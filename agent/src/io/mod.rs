//! Everything that touches the kernel, the store or the network: bytes become validated facts here, nothing is decided.

pub mod kernel;

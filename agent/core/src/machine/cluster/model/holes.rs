//! The fourteen holes of lease.md: each opens when its rule is not kept, and is closed when it is.

//! The `baton` program; everything is in the library.

fn main() -> std::process::ExitCode {
    baton::cli::main()
}

//! The `baton` program.

fn main() {
    let path = std::env::args().nth(1).unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let loaded = match baton::config::load(path.as_ref()) {
        Ok(l) => l,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(64)
        }
    };
    if let Err(e) = baton::slow::run(loaded) {
        eprintln!("baton: {e}");
        std::process::exit(1)
    }
}

//! Builds the kernel programs (`../ebpf`) for the BPF target and leaves the object in `$OUT_DIR/baton-ebpf`.
//!
//! The kernel crate needs the source of `core` and a linker for BPF. Any toolchain that has the source will do, and it
//! need not be the one that builds the agent: Debian's `cargo-web` with `rust-web-src`, or rustup's nightly with
//! `rust-src`. The build is shared by debug, release and check.
//!
//! Variables that override what is found:
//! - `BATON_EBPF_SYSROOT`: folder of a toolchain with the source of `core`,
//! - `BPF_LINKER`: path of bpf-linker,
//! - `BATON_EBPF_OBJECT`: an object built elsewhere; nothing is built here.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Package and binary of the kernel programs.
const PACKAGE: &str = "baton-ebpf";

fn main() {
    if let Err(error) = build() {
        // Cargo prints what a failed build script wrote to standard error; a backtrace would only hide it.
        eprintln!("\n{error:#}\n");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    // Folders are watched file by file below them; the crate's own folder is not, because it may hold a target/.
    for path in [
        "build.rs",
        "../ebpf/src",
        "../ebpf/Cargo.toml",
        "../ebpf/Cargo.lock",
        "../common/src",
        "../common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in ["BATON_EBPF_SYSROOT", "BPF_LINKER", "BATON_EBPF_OBJECT"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: run this by cargo")?);
    let embedded = out_dir.join(PACKAGE);
    let object = match env::var_os("BATON_EBPF_OBJECT") {
        Some(object) => PathBuf::from(object),
        None => compile(&out_dir)?,
    };
    println!("cargo::rerun-if-changed={}", object.display());
    fs::copy(&object, &embedded)
        .with_context(|| format!("copying the kernel programs from {}", object.display()))?;
    Ok(())
}

/// Runs the inner cargo; returns the object it made.
fn compile(out_dir: &Path) -> Result<PathBuf> {
    let sysroot = find_sysroot()?;
    let linker = find_linker()?;
    println!("cargo::rerun-if-changed={}", sysroot.join("bin/rustc").display());
    println!("cargo::rerun-if-changed={}", linker.display());

    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?;
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target_dir = out_dir.ancestors().nth(4).context("OUT_DIR is not where cargo puts it")?.join("ebpf");
    let flags = [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v3".to_owned(), // 32-bit jumps and arithmetic: Linux 5.1
        // Headers lie at odd offsets; the verifier lets every architecture with cheap unaligned loads do them whole.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
        "-Cdebuginfo=2".to_owned(), // BTF is made of it
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("--remap-path-prefix={manifest_dir}=/"),
    ];

    let mut cargo = Command::new(sysroot.join("bin/cargo"));
    cargo
        .current_dir("../ebpf")
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--bin", PACKAGE, "--target", target])
        .arg("--target-dir")
        .arg(&target_dir)
        .stdin(Stdio::null());
    for (name, _) in env::vars_os() {
        if !is_for_the_inner_cargo(&name) {
            cargo.env_remove(name);
        }
    }
    cargo
        .env("RUSTC", sysroot.join("bin/rustc"))
        .env("RUSTC_BOOTSTRAP", "1") // -Z on a stable compiler; nightly ignores it
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));

    let output = cargo.output().with_context(|| format!("starting {:?}", cargo.get_program()))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        bail!(
            "the kernel programs do not build with the toolchain in {} for {target} (see above)",
            sysroot.display()
        );
    }
    Ok(target_dir.join(target).join("release").join(PACKAGE))
}

/// What the outer cargo and rustup's proxies set describes the outer build. Only where crates come from, and the job
/// server (so that `-j` holds for both), is for the inner one too.
fn is_for_the_inner_cargo(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let shared = ["CARGO_HOME", "CARGO_MAKEFLAGS"].contains(&&*name)
        || ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let outer = ["CARGO", "RUST", "DEP_"].iter().any(|prefix| name.starts_with(prefix))
        || ["TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS", "OUT_DIR"].contains(&&*name);
    shared || !outer
}

/// The first toolchain with the source of `core`: the named one, else the one that runs this build, Debian's, rustup's nightly.
fn find_sysroot() -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match env::var_os("BATON_EBPF_SYSROOT") {
        Some(sysroot) => vec![sysroot.into()],
        None => {
            let this = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
            [
                ask_sysroot(&this, &[]),
                ask_sysroot("/usr/bin/rustc", &[]),
                ask_sysroot("rustup", &["run", "nightly", "rustc"]),
            ]
            .into_iter()
            .flatten()
            .collect()
        }
    };
    let found = candidates.iter().find(|sysroot| {
        sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
            && sysroot.join("bin/cargo").exists()
    });
    match found {
        Some(sysroot) => Ok(sysroot.clone()),
        None => bail!(
            "No Rust toolchain with the source of `core`, which the kernel programs need (looked in {candidates:?}).\n\
             Debian:  apt-get install --no-install-recommends cargo-web rust-web-src\n\
             rustup:  rustup toolchain install nightly --component rust-src\n\
             Or run `make setup`."
        ),
    }
}

/// Asks a compiler for its folder; `None` if it isn't there.
fn ask_sysroot(program: &str, arguments: &[&str]) -> Option<PathBuf> {
    let output = Command::new(program)
        .args(arguments)
        .args(["--print", "sysroot"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The named bpf-linker, else the first one in PATH, `$CARGO_HOME/bin`, `~/.cargo/bin`.
fn find_linker() -> Result<PathBuf> {
    if let Some(linker) = env::var_os("BPF_LINKER") {
        return Ok(linker.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("bin"));
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let found = env::split_paths(&path)
        .chain(cargo_home)
        .chain(home)
        .map(|folder| folder.join("bpf-linker"))
        .find(|candidate| candidate.is_file());
    match found {
        Some(linker) => Ok(linker),
        None => bail!(
            "bpf-linker, which the kernel programs need, is not in PATH, $CARGO_HOME/bin or ~/.cargo/bin.\n\
             apt-get install --no-install-recommends llvm-22-dev\n\
             LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22\n\
             Or run `make setup`, or name it in BPF_LINKER."
        ),
    }
}

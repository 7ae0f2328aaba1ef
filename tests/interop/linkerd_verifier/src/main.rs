//! `linkerd_verifier answer ROOTS CHAIN KEY NAME` says whether a proxy of this name would take an answer;
//! `linkerd_verifier handshake ROOTS CHAIN KEY ROOTS CHAIN KEY NAME` lets a client (the second three) talk to a
//! server (the first), in whose certificate it wants to find NAME;
//! `linkerd_verifier paths linkerd|ambient FOLDER NAME...` says of each FOLDER/NAME.roots and FOLDER/NAME.chain why a
//! linkerd2-proxy or a ztunnel, which has all algorithms of its library, does not take the path. All files are PEM; a line of output is a key,
//! a space and a value. A refusal is an outcome: the exit status is 0.

mod credentials;
mod crypto;
mod handshake;

use credentials::{Failure, Files};
use crypto::ALGORITHMS;
use rustls::crypto::aws_lc_rs::default_provider;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("linkerd_verifier: {error}");
        std::process::exit(2);
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    match arguments.split_first() {
        Some((verb, [roots, chain, key, name])) if verb == "answer" => {
            show(
                "refused",
                credentials::refusal(&files(roots, chain, key), name)?,
            );
        }
        Some((verb, [plane, folder, names @ ..])) if verb == "paths" => {
            let all = default_provider().signature_verification_algorithms.all;
            let algorithms = if plane == "ambient" { all } else { ALGORITHMS.all };
            for name in names {
                let (roots, chain) = (format!("{folder}/{name}.roots"), format!("{folder}/{name}.chain"));
                let refused = credentials::path_refusal(algorithms, &roots, &chain);
                show(name, refused.unwrap_or_else(|error| Some(error.to_string())));
            }
        }
        Some((verb, [r1, c1, k1, r2, c2, k2, name])) if verb == "handshake" => {
            let outcome = handshake::hold(&files(r1, c1, k1), &files(r2, c2, k2), name)?;
            show("client", outcome.client);
            show("server", outcome.server);
            show("peer", outcome.peer);
            show("version", outcome.version);
        }
        _ => {
            return Err(
                "usage: answer ROOTS CHAIN KEY NAME | handshake (ROOTS CHAIN KEY) x 2 NAME | paths linkerd|ambient FOLDER NAME..."
                    .into(),
            )
        }
    }
    Ok(())
}

fn files(roots: &str, chain: &str, key: &str) -> Files {
    Files {
        roots: roots.into(),
        chain: chain.into(),
        key: key.into(),
    }
}

fn show(key: &str, value: Option<String>) {
    if let Some(value) = value {
        println!("{key} {value}");
    }
}

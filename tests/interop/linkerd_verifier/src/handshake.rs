//! Two proxies hold a mutual TLS 1.3 handshake in memory, and a word each way.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::credentials::{names, read_chain, read_key, read_roots, AnySan, Failure, Files, Shown};
use crate::crypto::{provider, VERSIONS};

const WORD: &[u8] = b"word";
/// More turns than a handshake has.
const TURNS: usize = 20;

/// What came of it: each side's refusal, and who the server took the client for.
#[derive(Default)]
pub struct Outcome {
    pub client: Option<String>,
    pub server: Option<String>,
    pub peer: Option<String>,
    pub version: Option<String>,
}

/// Lets `client` talk to `server`, in whose certificate it wants to find `name`.
pub fn hold(server: &Files, client: &Files, name: &str) -> Result<Outcome, Failure> {
    let to: ServerName = ServerName::try_from(name.to_owned())?;
    let mut asking: Connection = ClientConnection::new(client_config(client)?, to)?.into();
    let mut serving: Connection = ServerConnection::new(server_config(server)?)?.into();
    let mut outcome = Outcome::default();
    for _ in 0..TURNS {
        if outcome.client.is_none() {
            outcome.client = carry(&mut serving, &mut asking).err();
        }
        if outcome.client.is_none() && !asking.is_handshaking() {
            outcome.client = unexpected(&asking, name)?;
        }
        if outcome.server.is_none() {
            outcome.server = carry(&mut asking, &mut serving).err();
        }
        // In TLS 1.3 a client is ready before the server has looked at its certificate.
        let ready = !asking.is_handshaking() && !serving.is_handshaking();
        if outcome.client.is_some() || outcome.server.is_some() || ready {
            break;
        }
    }
    if outcome.client.is_some() || outcome.server.is_some() {
        return Ok(outcome);
    }
    say(&mut asking, &mut serving)?;
    say(&mut serving, &mut asking)?;
    let shown = serving.peer_certificates().and_then(|chain| chain.first());
    outcome.peer = match shown {
        Some(leaf) => names(leaf)?.into_iter().next(),
        None => None,
    };
    outcome.version = serving.protocol_version().map(|one| format!("{one:?}"));
    Ok(outcome)
}

/// A proxy looks for the name after the handshake, not in it.
fn unexpected(asking: &Connection, name: &str) -> Result<Option<String>, Failure> {
    let leaf = asking
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or("no certificate")?;
    let found = names(leaf)?.iter().any(|one| one == name);
    Ok((!found).then(|| "certificate does not match TLS identity".into()))
}

fn client_config(files: &Files) -> Result<Arc<ClientConfig>, Failure> {
    let verifier = Arc::new(AnySan(read_roots(&files.roots)?));
    let config = ClientConfig::builder_with_provider(provider().into())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(shown(files)?));
    Ok(config.into())
}

fn server_config(files: &Files) -> Result<Arc<ServerConfig>, Failure> {
    let roots = Arc::new(read_roots(&files.roots)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider().into())
        .allow_unauthenticated()
        .build()?;
    let config = ServerConfig::builder_with_provider(provider().into())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(shown(files)?));
    Ok(config.into())
}

fn shown(files: &Files) -> Result<Shown, Failure> {
    let (chain, key) = (read_chain(&files.chain)?, read_key(&files.key)?);
    Ok(Shown(Arc::new(CertifiedKey::from_der(
        chain,
        key,
        &provider(),
    )?)))
}

fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), String> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes)
            .map_err(|error| error.to_string())?;
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).map_err(|error| error.to_string())?;
        to.process_new_packets()
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn say(from: &mut Connection, to: &mut Connection) -> Result<(), Failure> {
    from.writer().write_all(WORD)?;
    carry(from, to)?;
    let mut heard = [0; WORD.len()];
    to.reader().read_exact(&mut heard)?;
    if heard == WORD {
        Ok(())
    } else {
        Err("another word was heard".into())
    }
}

//! One proxy's credentials, and the three things that it asks of an answer before it takes it.
//!
//! Source: linkerd2-proxy, linkerd/meshtls (`Store::set_certificate`, `AnySanVerifier`) and linkerd/meshtls/verifier.

use std::{error::Error, fs, sync::Arc};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, ResolvesClientCert};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{
    pem::PemObject, CertificateDer, PrivateKeyDer, ServerName, SignatureVerificationAlgorithm,
    UnixTime,
};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::crypto::{provider, ALGORITHMS, SHOWN_WITH};

pub type Failure = Box<dyn Error>;

/// What a proxy was given: trust anchors, an answer of Certify, and the key of its CSR.
pub struct Files {
    pub roots: String,
    pub chain: String,
    pub key: String,
}

/// As both proxies do: an anchor that cannot be read is left out, and one has to be left.
pub fn read_roots(file: &str) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(read_chain(file)?);
    if added == 0 {
        return Err("no trust anchor can be read".into());
    }
    Ok(roots)
}

/// Says why a proxy would not take a path, as a client and as a server.
pub fn path_refusal(
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    roots: &str,
    chain: &str,
) -> Result<Option<String>, Failure> {
    let (roots, chain) = (read_roots(roots)?, read_chain(chain)?);
    let (leaf, above) = chain.split_first().ok_or("the chain is empty")?;
    let leaf = EndEntityCert::try_from(leaf)?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let now = UnixTime::now();
        let roots = &roots.roots;
        if let Err(error) =
            leaf.verify_for_usage(algorithms, roots, above, now, usage, None, None)
        {
            return Ok(Some(error.to_string()));
        }
    }
    Ok(None)
}

pub fn read_chain(file: &str) -> Result<Vec<CertificateDer<'static>>, Failure> {
    Ok(CertificateDer::pem_slice_iter(&fs::read(file)?).collect::<Result<_, _>>()?)
}

pub fn read_key(file: &str) -> Result<PrivateKeyDer<'static>, Failure> {
    Ok(PrivateKeyDer::from_pem_slice(&fs::read(file)?)?)
}

/// Says why a proxy with this name would not take the answer, and at which step.
pub fn refusal(files: &Files, name: &str) -> Result<Option<String>, Failure> {
    let verifier = AnySan(read_roots(&files.roots)?);
    let chain = read_chain(&files.chain)?;
    let key = read_key(&files.key)?;
    let (leaf, above) = chain.split_first().ok_or("the chain is empty")?;
    if let Err(error) = verifier.path(leaf, above, UnixTime::now()) {
        return Ok(Some(format!("path: {error}")));
    }
    if !names(leaf)?.iter().any(|one| one == name) {
        return Ok(Some("name: certificate does not match TLS identity".into()));
    }
    if let Err(error) = CertifiedKey::from_der(chain, key, &provider()) {
        return Ok(Some(format!("key: {error}")));
    }
    Ok(None)
}

/// The DNS and URI names of a leaf, in their order; the first is the peer's identity for a server.
pub fn names(leaf: &[u8]) -> Result<Vec<String>, Failure> {
    let (_, certificate) = X509Certificate::from_der(leaf)?;
    let Some(found) = certificate.subject_alternative_name()? else {
        return Ok(Vec::new());
    };
    let known = |name: &GeneralName| match name {
        GeneralName::DNSName(dns) if dns.ends_with('.') => None,
        GeneralName::DNSName(dns) => Some(dns.to_ascii_lowercase()),
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(found.value.general_names.iter().filter_map(known).collect())
}

/// A path to the trust anchors for serverAuth, whatever the names.
#[derive(Debug)]
pub struct AnySan(pub RootCertStore);

impl AnySan {
    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.0, above, now, ALGORITHMS.all)
    }
}

impl ServerCertVerifier for AnySan {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.path(leaf, above, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// Shows the one certificate, and only to peers that verify P-256 with SHA-256.
#[derive(Debug)]
pub struct Shown(pub Arc<CertifiedKey>);

impl Shown {
    fn to(&self, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        schemes.contains(&SHOWN_WITH).then(|| self.0.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.to(schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.to(hello.signature_schemes())
    }
}

//! What linkerd2-proxy takes in a chain and in a handshake: TLS 1.3, and its own list of signature algorithms.
//!
//! Source: linkerd2-proxy, linkerd/rustls/src/crypto.rs, as `reference/linkerd.md` section 19 tells it.

use rustls::crypto::{aws_lc_rs::default_provider, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::SignatureScheme as Scheme;
use webpki::aws_lc_rs::*;

/// RSA only as PKCS#1 v1.5 and with the NULL in its AlgorithmIdentifier; no RSA-PSS; nothing below 2048 bits.
pub static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        ECDSA_P256_SHA256,
        ECDSA_P256_SHA384,
        ECDSA_P256_SHA512,
        ECDSA_P384_SHA256,
        ECDSA_P384_SHA384,
        ECDSA_P384_SHA512,
        ECDSA_P521_SHA256,
        ECDSA_P521_SHA384,
        ECDSA_P521_SHA512,
        ED25519,
        RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_2048_8192_SHA384,
        RSA_PKCS1_2048_8192_SHA512,
        RSA_PKCS1_3072_8192_SHA384,
    ],
    mapping: &[
        (
            Scheme::ECDSA_NISTP384_SHA384,
            &[ECDSA_P384_SHA384, ECDSA_P256_SHA384, ECDSA_P521_SHA384],
        ),
        (
            Scheme::ECDSA_NISTP256_SHA256,
            &[ECDSA_P256_SHA256, ECDSA_P384_SHA256, ECDSA_P521_SHA256],
        ),
        (Scheme::ECDSA_NISTP521_SHA512, &[ECDSA_P521_SHA512]),
        (Scheme::ED25519, &[ED25519]),
        (Scheme::RSA_PKCS1_SHA512, &[RSA_PKCS1_2048_8192_SHA512]),
        (Scheme::RSA_PKCS1_SHA384, &[RSA_PKCS1_2048_8192_SHA384]),
        (Scheme::RSA_PKCS1_SHA256, &[RSA_PKCS1_2048_8192_SHA256]),
    ],
};

/// A proxy shows its certificate only to a peer that offers this.
pub const SHOWN_WITH: Scheme = Scheme::ECDSA_NISTP256_SHA256;

pub static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

pub fn provider() -> CryptoProvider {
    CryptoProvider {
        signature_verification_algorithms: ALGORITHMS,
        ..default_provider()
    }
}

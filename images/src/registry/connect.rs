//! Why a registry is not reached: the one cause that tells, out of the HTTP client's long chain.

use std::error::Error;
use std::fmt;
use std::io;

use crate::names::NameError;

/// Why a registry is not reached.
#[derive(Debug)]
pub struct ConnectError {
    kind: ConnectKind,
    text: String,
    /// No connection was made: trying at once again is of no use.
    at_connect: bool,
}

/// What kind of failure it is, and so what may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectKind {
    /// The host's name has no address.
    Name,
    /// Nobody listens there.
    Refused,
    /// The certificate is of an authority that is not trusted.
    UntrustedCertificate,
    /// The certificate is not valid now: expired, not yet valid, or this machine's clock is wrong.
    CertificateTime,
    /// The certificate is wrong in another way, such as for another name.
    Certificate,
    /// The other side does not speak TLS.
    NotTls,
    /// No answer in time.
    TimedOut,
    /// Anything else: no route, a connection that breaks.
    Other,
}

impl ConnectError {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ConnectKind {
        self.kind
    }

    pub(super) fn is_at_connect(&self) -> bool {
        self.at_connect
    }
}

impl From<reqwest::Error> for ConnectError {
    fn from(error: reqwest::Error) -> Self {
        // The address may hold a signed one of the registry's storage.
        let error = error.without_url();
        let mut kind = if error.is_timeout() {
            ConnectKind::TimedOut
        } else {
            ConnectKind::Other
        };
        let mut text = error.to_string();
        for cause in causes(&error) {
            text = cause.to_string();
            if let Some(name) = cause.downcast_ref::<NameError>() {
                kind = ConnectKind::Name;
                text = match name.source() {
                    Some(source) => format!("{name}: {source}"),
                    None => name.to_string(),
                };
                break;
            }
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                kind = kind_of_tls(tls);
                break;
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                kind = kind_of_io(io, kind);
            }
        }
        Self {
            kind,
            text,
            at_connect: error.is_connect(),
        }
    }
}

fn kind_of_tls(error: &rustls::Error) -> ConnectKind {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                ConnectKind::UntrustedCertificate
            }
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. } => ConnectKind::CertificateTime,
            _ => ConnectKind::Certificate,
        },
        rustls::Error::InvalidMessage(_) => ConnectKind::NotTls,
        _ => ConnectKind::Other,
    }
}

fn kind_of_io(error: &io::Error, before: ConnectKind) -> ConnectKind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectKind::Refused,
        io::ErrorKind::TimedOut => ConnectKind::TimedOut,
        _ => before,
    }
}

type Cause<'a> = &'a (dyn Error + 'static);

/// The causes of an error.
fn causes<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    std::iter::successors(error.source(), |error| cause(*error))
}

/// The next cause. `io::Error` hides the one that it was made of.
fn cause<'a>(error: Cause<'a>) -> Option<Cause<'a>> {
    let io = error.downcast_ref::<io::Error>();
    match io.and_then(io::Error::get_ref) {
        Some(hidden) => Some(hidden),
        None => error.source(),
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ConnectKind::NotTls => write!(f, "it does not speak TLS ({})", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl Error for ConnectError {}

//! What faults are turned on for, as its author writes it: `NAMESPACE/NAME[:PORT][@BACKEND]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::model::ServicePortKey;

/// A simulated Pod, a Service, a port of it, or one of its backends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultTarget {
    /// What kind of object it is, where that is known.
    pub subject: Subject,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Of a Service: the name or number of one port.
    pub port: Option<Arc<str>>,
    /// Of a Service: one backend, by address or by Pod.
    pub backend: Option<Backend>,
}

/// What a name may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A simulated Pod.
    Pod,
    /// A Service.
    Service,
    /// The text does not say.
    Either,
}

/// One backend of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// By address and port.
    Socket(SocketAddr),
    /// By address.
    Ip(IpAddr),
    /// By the name of its Pod.
    Pod(Arc<str>),
}

/// A text that names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no target; NAMESPACE/POD, NAMESPACE/SERVICE[:PORT][@BACKEND] are, where BACKEND is an address or a Pod. \
     pod/NAMESPACE/NAME and service/NAMESPACE/NAME tell two of one name apart"
)]
pub struct InvalidFaultTarget(pub String);

impl FaultTarget {
    /// A simulated Pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self {
            subject: Subject::Pod,
            namespace: namespace.into(),
            name: name.into(),
            port: None,
            backend: None,
        }
    }

    /// Whether it names flows of that service port to that backend. `pod` is the backend's.
    pub fn names(
        &self,
        key: &ServicePortKey,
        port: u16,
        backend: SocketAddr,
        pod: Option<&str>,
    ) -> bool {
        self.closeness(key, port, backend, pod).is_some()
    }

    /// How closely it names that flow; `None` if it does not. `pod` is the backend's. A port and a backend make it
    /// closer, a backend more than a port.
    pub(super) fn closeness(
        &self,
        key: &ServicePortKey,
        port: u16,
        backend: SocketAddr,
        pod: Option<&str>,
    ) -> Option<u8> {
        let service = &key.service;
        if self.subject == Subject::Pod
            || *self.namespace != *service.namespace
            || *self.name != *service.name
        {
            return None;
        }
        let by_port = match self.port.as_deref() {
            None => 0,
            Some(wanted) if *wanted == *key.port || wanted == port.to_string() => 1,
            Some(_) => return None,
        };
        let by_backend = match &self.backend {
            None => 0,
            Some(Backend::Socket(wanted)) if *wanted == backend => 4,
            Some(Backend::Ip(wanted)) if *wanted == backend.ip() => 2,
            Some(Backend::Pod(wanted)) if Some(&**wanted) == pod => 3,
            Some(Backend::Socket(_) | Backend::Ip(_) | Backend::Pod(_)) => return None,
        };
        Some(2 * by_backend + by_port)
    }
}

impl FromStr for FaultTarget {
    type Err = InvalidFaultTarget;

    fn from_str(text: &str) -> Result<Self, InvalidFaultTarget> {
        let invalid = || InvalidFaultTarget(text.to_owned());
        let (object, backend) = match text.split_once('@') {
            Some((object, backend)) => (object, Some(backend)),
            None => (text, None),
        };
        let (object, port) = match object.split_once(':') {
            Some((object, port)) => (object, Some(port)),
            None => (object, None),
        };
        let is_part = |part: &str| !part.is_empty() && !part.contains(['/', ':', '@', ' ']);
        let parts: Vec<&str> = object.split('/').collect();
        let (subject, namespace, name) = match parts[..] {
            ["pod", namespace, name] => (Subject::Pod, namespace, name),
            ["service" | "svc", namespace, name] => (Subject::Service, namespace, name),
            [namespace, name] if port.is_some() || backend.is_some() => {
                (Subject::Service, namespace, name)
            }
            [namespace, name] => (Subject::Either, namespace, name),
            _ => return Err(invalid()),
        };
        let of_service = port.is_some() || backend.is_some();
        if !is_part(namespace)
            || !is_part(name)
            || !port.is_none_or(is_part)
            || (of_service && subject == Subject::Pod)
        {
            return Err(invalid());
        }
        let backend = match backend {
            None => None,
            Some(addr) if addr.parse::<SocketAddr>().is_ok() => {
                addr.parse().ok().map(Backend::Socket)
            }
            Some(ip) if ip.parse::<IpAddr>().is_ok() => ip.parse().ok().map(Backend::Ip),
            Some(pod) if is_part(pod) => Some(Backend::Pod(pod.into())),
            Some(_) => return Err(invalid()),
        };
        Ok(Self {
            subject,
            namespace: namespace.into(),
            name: name.into(),
            port: port.map(Into::into),
            backend,
        })
    }
}

impl fmt::Display for FaultTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Pod => f.write_str("pod/")?,
            Subject::Service => f.write_str("service/")?,
            Subject::Either => {}
        }
        write!(f, "{}/{}", self.namespace, self.name)?;
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        match &self.backend {
            None => Ok(()),
            Some(Backend::Socket(addr)) => write!(f, "@{addr}"),
            Some(Backend::Ip(ip)) => write!(f, "@{ip}"),
            Some(Backend::Pod(pod)) => write!(f, "@{pod}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_and_written() {
        for (text, expected) in [
            ("default/web", "default/web"),
            ("pod/default/web-0", "pod/default/web-0"),
            ("svc/default/web", "service/default/web"),
            ("default/web:80", "service/default/web:80"),
            ("default/web:http@web-0", "service/default/web:http@web-0"),
            ("default/web@10.1.0.4", "service/default/web@10.1.0.4"),
            (
                "default/web@[fd00::1]:80",
                "service/default/web@[fd00::1]:80",
            ),
        ] {
            assert_eq!(text.parse::<FaultTarget>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "web",
            "/web",
            "default/",
            "a/b/c",
            "default/web:",
            "default/web@",
            "pod/default/web:80",
            "default/web:a:b",
            "pod/default/web@x",
            "default/w eb",
        ] {
            assert!(text.parse::<FaultTarget>().is_err(), "{text}");
        }
    }
}

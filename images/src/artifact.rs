//! What registries hold besides container images, by media type, so that it can be refused by its name.
//!
//! Deliberately absent: a list of all that there is. What is not known here is refused too, by its media type.

/// Media types, or how they begin; what people call it; and what to do with it instead.
const KNOWN: [(&str, &str, &str); 20] = [
    (
        "application/vnd.cncf.helm.",
        "a Helm chart",
        "`helm pull oci://…` fetches it, and `helm template` makes manifests of it",
    ),
    (
        "application/vnd.dev.cosign.",
        "a cosign signature",
        "`cosign verify` checks it; name the image that it signs",
    ),
    (
        "application/vnd.dev.sigstore.",
        "a sigstore signature",
        "`cosign verify` checks it; name the image that it signs",
    ),
    (
        "application/vnd.cncf.notary.",
        "a Notary signature",
        "`notation verify` checks it; name the image that it signs",
    ),
    (
        "application/vnd.in-toto",
        "an attestation",
        "name the image that it tells of",
    ),
    (
        "application/vnd.dsse.",
        "an attestation",
        "name the image that it tells of",
    ),
    (
        "application/spdx",
        "a bill of materials",
        "name the image that it tells of",
    ),
    (
        "text/spdx",
        "a bill of materials",
        "name the image that it tells of",
    ),
    (
        "application/vnd.cyclonedx",
        "a bill of materials",
        "name the image that it tells of",
    ),
    (
        "application/vnd.syft",
        "a bill of materials",
        "name the image that it tells of",
    ),
    (
        "application/vnd.wasm.",
        "a WebAssembly module",
        "it needs a WebAssembly runtime",
    ),
    (
        "application/vnd.module.wasm.",
        "a WebAssembly module",
        "it needs a WebAssembly runtime",
    ),
    (
        "application/vnd.sylabs.sif.",
        "a Singularity image",
        "`apptainer pull oras://…` fetches it",
    ),
    (
        "application/vnd.docker.plugin.",
        "a plugin of the Docker daemon",
        "only Docker can use it",
    ),
    (
        "application/vnd.docker.compose.",
        "a Compose file",
        "`docker compose -f oci://…` reads it",
    ),
    (
        "application/vnd.cncf.flux.",
        "a Flux source",
        "`flux pull artifact` fetches it",
    ),
    (
        "application/vnd.cncf.openpolicyagent.",
        "a policy bundle",
        "`conftest pull` fetches it",
    ),
    (
        "application/vnd.cncf.model.",
        "a model",
        "`modctl pull` fetches it",
    ),
    (
        "application/vnd.ollama.",
        "a model",
        "`ollama pull` fetches it",
    ),
    (
        "application/vnd.oci.empty.",
        "an artifact without a type",
        "`oras pull` fetches its files",
    ),
];

/// What people call content of this type; none if it is not known here.
pub(crate) fn name(media_type: &str) -> Option<&'static str> {
    find(media_type).map(|(_, name, _)| name)
}

/// Why content of this type is not used, and what to do instead.
pub(crate) fn refusal(media_type: &str) -> String {
    // It may be as long as a manifest.
    let shown: String = media_type.chars().take(160).collect();
    match find(media_type) {
        Some((_, name, remedy)) => {
            format!("this is not a container image but {name} (`{shown}`): {remedy}")
        }
        None => format!(
            "this is not a container image but an artifact of the type `{shown}`: `oras pull` fetches its files"
        ),
    }
}

fn find(media_type: &str) -> Option<(&'static str, &'static str, &'static str)> {
    KNOWN
        .into_iter()
        .find(|(prefix, ..)| media_type.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_artifacts_are_called_by_name_and_others_by_type() {
        for (media_type, part) in [
            ("application/vnd.cncf.helm.config.v1+json", "a Helm chart"),
            (
                "application/vnd.dev.cosign.simplesigning.v1+json",
                "cosign verify",
            ),
            ("application/vnd.oci.empty.v1+json", "without a type"),
            (
                "application/vnd.acme.rocket.config",
                "type `application/vnd.acme.rocket.config`",
            ),
        ] {
            let text = refusal(media_type);
            assert!(text.contains(part), "{text}");
        }
        assert!(refusal(&"x".repeat(1 << 20)).len() < 400);
    }
}

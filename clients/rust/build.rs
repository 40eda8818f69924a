fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::env::set_var("PROTOC", protoc_bin_vendored::protoc_bin_path()?);
    let protos = ["common", "negotiation", "transfer"].map(|name| format!("../../protos/fedstream/v1/{name}.proto"));
    tonic_prost_build::configure().build_server(false).compile_protos(&protos, &["../../protos".to_string()])?;
    Ok(())
}

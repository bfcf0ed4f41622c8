/** The pack's nodes, by the names under which ComfyUI knows them. */

export const ENCODE_NODE = "EncodeToLatentFile";
export const SAVE_NODE = "SaveLatentToDisk";
export const LOAD_NODE = "LoadLatentFromDisk";
export const PUBLISH_NODE = "PublishLatentToKafka";
export const OPTIMIZE_NODE = "OptimizeVAEForEncoding";

// ComfyUI's own modules, which only exist in its front end. Their types come from the front end itself.
// Added: events of this pack, and the symbol under which a script marks the app that it has registered with.
type ComfyApp = import("@comfyorg/comfyui-frontend-types").ComfyApp;
type ComfyApi = import("@comfyorg/comfyui-frontend-types").ComfyApi;

declare module "*/scripts/app.js" {
  export const app: ComfyApp & { [registered: symbol]: boolean };
}
declare module "*/scripts/api.js" {
  export const api: Omit<ComfyApi, "addEventListener"> & {
    addEventListener: ComfyApi["addEventListener"] &
      ((type: `dual_cache.${string}`, callback: (event: CustomEvent<any>) => void) => void);
  };
}
